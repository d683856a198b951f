//! loadgen: measures long-connection message servers over loopback.
//! See `loadgen help` and ../README.md.

mod modes;
mod mqtt;
mod pool;
mod raw;
mod stats;
mod sys;

use std::collections::HashMap;

const HELP: &str = "\
loadgen MODE [options]        loopback only; one thread; prints a human line (stderr) and a JSON line (stdout)

modes
  idle       -n N               connect N clients, each subscribed to its own topic d/<i>; hold
  fanout     -n N --msgs M      N subscribers of one topic, one publisher
  unicast    -n N --msgs M      each message to one of N devices, uniformly; --publishers P
  offline    -n N --msgs K      N kept sessions (clean_session 0, QoS 1) go away, K messages to each, all return
  rawserver                     the kernel's own limit as a server: --host --port [--coalesce] [--congestion cubic]

common
  --host 127.0.0.1  --port 1883  --server-pid PID[,PID]   or  --server-pidfile FILE
  --label TEXT      goes into the JSON        --id PREFIX       client id prefix
  --user U --pass P                           --window W        handshakes at once (256)
  --connect-rate R  conn/s, 0 = no limit      --per-source K    clients for each 127.1.x.y address (6000)
  --keepalive S     idle: ping period and declared keepalive (60); other modes only declare it (600)
  --stall S         seconds without progress that end a run (5)

idle     --hold S (10)  --settle S (2)  --probe K  messages to K random clients at the end (1000)  --slabs 1
         --procs P  client processes, each with its share of N; with --port P1,P2,... worker k uses the k-th in turn
fanout, unicast
  --size B (256)  --qos 0|1  --rate R  messages/s, 0 = as fast as the window lets
  --outstanding W  messages published and not yet received by all who should (0 = no limit)
                   default: fanout 50000/N within 2..50; unicast 4096
  --pub-inflight W QoS 1 messages a publisher has unacknowledged (500)   --publishers P (1)
  --warmup M       messages before the clock starts
offline  --size B  --server-dir DIR  disk use is read there   --between 'CMD'  shell command run while all are away
";

fn main() {
    let mut a: HashMap<String, String> = HashMap::new();
    let mut it = std::env::args().skip(1);
    let mode = it.next().unwrap_or_else(|| "help".into());
    let mut it = it.peekable();
    while let Some(k) = it.next() {
        let k = k.trim_start_matches('-').to_string();
        let v = match it.peek() {
            Some(v) if !v.starts_with("--") && v != &"-n" => it.next().unwrap(),
            _ => "1".into(),
        };
        a.insert(k, v);
    }
    let o = modes::Opts::new(a);
    match mode.as_str() {
        "idle" => modes::idle(&o),
        "fanout" => modes::traffic(&o, true),
        "unicast" => modes::traffic(&o, false),
        "offline" => modes::offline(&o),
        "rawserver" => raw::serve(o.ip(), o.num("port", 1883), o.flag("coalesce"), &o.text("congestion", "")),
        _ => {
            print!("{HELP}");
            std::process::exit(if mode == "help" { 0 } else { 2 });
        }
    }
}
