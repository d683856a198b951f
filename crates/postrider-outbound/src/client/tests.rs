//! Against receivers over real sockets on this machine, friendly and hostile ones.

use super::*;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Short times, so that hostile receivers are done with soon.
const TIMES: Times = Times { connect: Duration::from_secs(2), answer: Duration::from_millis(300) };

fn open_rules() -> Rules {
    Rules { allow_http: true, ports: Vec::new(), is_allowed: Arc::new(|ip| ip.is_loopback()) }
}

fn tls(trusted: &[rustls_pki_types::CertificateDer<'static>]) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

fn client(rules: Rules) -> Client {
    Client::new(Arc::new(rules), tls(&[]), TIMES, system_lookup())
}

fn post() -> Post {
    Post { id: "msg_1".into(), timestamp: 7, signatures: "v1,x".into(), body: Bytes::from_static(b"{}") }
}

/// A receiver that answers each connection with these bytes, once it has read the request; then it
/// keeps the connection. Gives its URL, and what it read.
async fn receiver(answer: impl Into<Vec<u8>>) -> (String, Arc<Mutex<Vec<u8>>>) {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/in?key=k", listener.local_addr().unwrap());
    let read: Arc<Mutex<Vec<u8>>> = Arc::default();
    let kept = read.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (answer, kept) = (answer.clone(), kept.clone());
            tokio::spawn(async move {
                let mut bytes = vec![0; 4096];
                while let Ok(len @ 1..) = socket.read(&mut bytes).await {
                    let whole = {
                        let mut kept = kept.lock().unwrap();
                        kept.extend_from_slice(&bytes[..len]);
                        kept.ends_with(b"\r\n\r\n{}")
                    };
                    if whole && socket.write_all(&answer).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (url, read)
}

async fn send(answer: impl Into<Vec<u8>>) -> Result<Answer, SendError> {
    let (url, _) = receiver(answer).await;
    client(open_rules()).post(&mut None, &url, &post(), 0).await
}

#[tokio::test]
async fn a_request_says_who_it_is_and_is_signed() {
    let (url, read) = receiver("HTTP/1.1 204 No Content\r\n\r\n").await;
    let answer = client(open_rules()).post(&mut None, &url, &post(), 0).await;
    assert_eq!(answer, Ok(Answer { status: 204, retry_after_ms: None }));
    let text = String::from_utf8(read.lock().unwrap().clone()).unwrap().to_lowercase();
    let host = url.trim_start_matches("http://").split('/').next().unwrap();
    assert!(text.starts_with("post /in?key=k http/1.1\r\n"), "{text}");
    for line in [
        &format!("host: {host}"),
        "content-type: application/json",
        "webhook-id: msg_1",
        "webhook-timestamp: 7",
        "webhook-signature: v1,x",
        "content-length: 2",
    ] {
        assert!(text.contains(&format!("\r\n{line}\r\n")), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_and_one_that_ended_is_no_failure() {
    let (url, read) = receiver("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let (client, mut link) = (client(open_rules()), None);
    for _ in 0..3 {
        assert_eq!(client.post(&mut link, &url, &post(), 0).await.map(|answer| answer.status), Ok(200));
        assert!(link.is_some());
    }
    assert_eq!(read.lock().unwrap().windows(4).filter(|bytes| bytes == b"POST").count(), 3);

    // It closes after each answer without saying so.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            let _ = socket.read(&mut bytes).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let mut link = None;
    for _ in 0..3 {
        assert_eq!(client.post(&mut link, &url, &post(), 0).await.map(|answer| answer.status), Ok(200));
    }
}

#[tokio::test]
async fn redirects_are_told_and_not_followed() {
    let (inside, read) = receiver("HTTP/1.1 200 OK\r\n\r\n").await;
    let answer = send(format!("HTTP/1.1 307 Over There\r\nlocation: {inside}\r\ncontent-length: 0\r\n\r\n"));
    assert_eq!(answer.await.map(|answer| answer.status), Ok(307));
    assert!(read.lock().unwrap().is_empty());
}

#[tokio::test]
async fn retry_after_is_read_in_both_forms() {
    for (value, now, wanted) in [
        ("120", 0, Some(120_000)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_700_000, Some(77_000)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 999_999_999_000, Some(0)),
        ("99999999999999999999999", 0, None),
        ("soon", 0, None),
        ("-1", 0, None),
    ] {
        let value = header::HeaderValue::from_str(value).unwrap();
        assert_eq!(retry_after(Some(&value), now), wanted, "{value:?}");
    }
}

#[tokio::test]
async fn what_answers_slowly_is_left() {
    for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n"] {
        assert_eq!(send(answer).await, Err(SendError::Timeout), "{answer}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_broken() {
    for answer in ["SSH-2.0-OpenSSH_9.9\r\n", "HTTP/9.9 200 OK\r\n\r\n", "\0\0\0\0\0\0\0\0\r\n"] {
        assert_eq!(send(answer).await, Err(SendError::Broken), "{answer}");
    }
    let many = (0..200).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    assert_eq!(send(format!("HTTP/1.1 200 OK\r\n{many}\r\n")).await, Err(SendError::Broken));
    let long = "x".repeat(200_000);
    assert_eq!(send(format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n")).await, Err(SendError::Broken));
}

#[tokio::test]
async fn a_body_without_end_costs_its_connection_and_the_status_counts() {
    let mut endless = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..40 {
        endless.extend_from_slice(format!("1000\r\n{}\r\n", "x".repeat(4096)).as_bytes());
    }
    let (url, _) = receiver(endless).await;
    let mut link = None;
    let answer = client(open_rules()).post(&mut link, &url, &post(), 0).await;
    assert_eq!(answer.map(|answer| answer.status), Ok(200));
    assert!(link.is_none(), "the connection is not used again");
}

#[tokio::test]
async fn nobody_there_is_told_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    assert_eq!(client(open_rules()).post(&mut None, &url, &post(), 0).await, Err(SendError::Connect));
}

#[tokio::test]
async fn a_url_that_the_settings_no_longer_allow_is_refused_at_each_request() {
    let (url, read) = receiver("HTTP/1.1 200 OK\r\n\r\n").await;
    assert_eq!(client(Rules::default()).post(&mut None, &url, &post(), 0).await, Err(SendError::Url));
    assert!(read.lock().unwrap().is_empty());
}

/// A lookup that answers otherwise each time: rebinding.
fn turns(answers: Vec<Vec<&'static str>>) -> Lookup {
    let answers = Mutex::new(answers.into_iter().cycle().collect_with(64));
    Arc::new(move |_| {
        let next: Vec<IpAddr> = answers.lock().unwrap().remove(0);
        Box::pin(async move { Ok(next) })
    })
}

trait CollectWith {
    fn collect_with(self, count: usize) -> Vec<Vec<IpAddr>>;
}

impl<I: Iterator<Item = Vec<&'static str>>> CollectWith for I {
    fn collect_with(self, count: usize) -> Vec<Vec<IpAddr>> {
        self.take(count).map(|all| all.iter().map(|ip| ip.parse().unwrap()).collect()).collect()
    }
}

#[tokio::test]
async fn a_name_that_leads_inside_is_refused_whenever_it_does() {
    let (url, read) = receiver("HTTP/1.1 200 OK\r\n\r\n").await;
    let port = url.split([':', '/']).nth(4).unwrap().to_owned();
    let url = format!("http://rebinding.example:{port}/");
    let rules = || Rules { allow_http: true, ports: Vec::new(), ..Rules::default() };
    for answers in [
        vec![vec!["127.0.0.1"]],
        vec![vec!["93.184.216.34", "127.0.0.1"]],
        vec![vec!["::ffff:127.0.0.1"]],
        vec![vec!["10.0.0.1"]],
    ] {
        let client = Client::new(Arc::new(rules()), tls(&[]), TIMES, turns(answers.clone()));
        assert_eq!(client.post(&mut None, &url, &post(), 0).await, Err(SendError::Address), "{answers:?}");
    }
    assert!(read.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_connection_is_made_to_the_address_that_was_checked() {
    let (url, _) = receiver("HTTP/1.1 200 OK\r\n\r\n").await;
    let port = url.split([':', '/']).nth(4).unwrap().to_owned();
    let url = format!("http://a.example:{port}/");
    // A second lookup would lead elsewhere.
    let lookup = turns(vec![vec!["127.0.0.1"], vec!["192.0.2.1"]]);
    let client = Client::new(Arc::new(open_rules()), tls(&[]), TIMES, lookup);
    assert_eq!(client.post(&mut None, &url, &post(), 0).await.map(|answer| answer.status), Ok(200));
    assert_eq!(client.post(&mut None, &url, &post(), 0).await, Err(SendError::Address));
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_or_of_another_name_is_refused() {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(socket).await else { return };
                let mut bytes = [0; 4096];
                let _ = stream.read(&mut bytes).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                let _ = stream.read(&mut bytes).await;
            });
        }
    });
    let lookup = || turns(vec![vec!["127.0.0.1"]]);
    let rules = || Arc::new(open_rules());
    let trusting = Client::new(rules(), tls(std::slice::from_ref(&certificate)), TIMES, lookup());
    let strange = Client::new(rules(), tls(&[]), TIMES, lookup());
    let url = |host: &str| format!("https://{host}:{port}/");
    let sent = async |client: &Client, host: &str| client.post(&mut None, &url(host), &post(), 0).await;
    assert_eq!(sent(&trusting, "a.example").await.map(|answer| answer.status), Ok(200));
    assert_eq!(sent(&trusting, "b.example").await, Err(SendError::Tls));
    assert_eq!(sent(&strange, "a.example").await, Err(SendError::Tls));
}
