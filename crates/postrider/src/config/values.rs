//! Values of settings that are more than a number or a text: how they are written in the file, and what they mean.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::SocketAddr;

fn parse(text: &str) -> Result<SocketAddr, String> {
    text.replace("localhost:", "127.0.0.1:").parse().map_err(|_| {
        format!("`{text}` is not an address: write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    })
}

/// An address, written `"127.0.0.1:8080"`. Errors say how to write one.
pub mod address {
    use super::*;

    pub fn serialize<S: Serializer>(address: &SocketAddr, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(address)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
        parse(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// An address, or `"off"`.
pub mod address_or_off {
    use super::*;

    pub fn serialize<S: Serializer>(address: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => to.collect_str(address),
            None => to.serialize_str("off"),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
        match String::deserialize(from)?.as_str() {
            "off" => Ok(None),
            text => parse(text).map(Some).map_err(|why| D::Error::custom(format!("{why}, or off"))),
        }
    }
}

/// Ports, written `[443, 8443]` in the file and `443,8443` elsewhere.
pub mod ports {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Port {
        Number(u16),
        Text(String),
    }

    pub fn serialize<S: Serializer>(ports: &[u16], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(ports)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u16>, D::Error> {
        let wrong = || D::Error::custom("a port is a number from 1 to 65535");
        let read = |port: Port| match port {
            Port::Number(number) => Some(number),
            Port::Text(text) => text.parse().ok(),
        };
        let ports = Vec::<Port>::deserialize(from).map_err(|_| wrong())?;
        ports.into_iter().map(|port| read(port).filter(|port| *port > 0).ok_or_else(wrong)).collect()
    }
}

/// When something counts as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sync {
    #[default]
    Synced,
    Relaxed,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}
