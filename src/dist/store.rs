//! The little of PyTorch's TCPStore that hands one value over: torchrun's agent holds such a store where its workers would
//! listen themselves. A client first proves that it is one, then sends commands of a byte and what belongs to them; integers are
//! little-endian, keys and values a length (u64) and bytes.

use super::greeting::{fill, left};
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Instant;

/// `VALIDATE` and its number: whoever does not begin with it is ignored.
const VALIDATE: [u8; 5] = [0, 0xce, 0xf7, 0x85, 0x3c];
const SET: u8 = 1;
const GET: u8 = 3;
const WAIT: u8 = 6;
/// What a value may have here.
const LONGEST: u64 = 1 << 16;

/// A connection to the store, until `until`.
pub(super) struct Store {
    stream: TcpStream,
    until: Instant,
}

impl Store {
    /// # Errors
    /// Those of the connection.
    pub fn open(address: SocketAddr, until: Instant) -> io::Result<Store> {
        let stream = TcpStream::connect_timeout(&address, left(until)?)?;
        stream.set_nodelay(true)?;
        let mut store = Store { stream, until };
        store.say(&VALIDATE)?;
        Ok(store)
    }

    /// Gives `key` a value. The store does not answer: [`Store::get`] tells whether it has it.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.say(&[&[SET][..], &text(key.as_bytes()), &text(value)].concat())
    }

    /// The value of `key`, once it has one.
    ///
    /// # Errors
    /// `TimedOut`; `InvalidData` when this is no such store; those of the connection.
    pub fn get(&mut self, key: &str) -> io::Result<Vec<u8>> {
        let invalid = |text: String| io::Error::new(ErrorKind::InvalidData, text);
        self.say(&[&[WAIT][..], &1_u64.to_le_bytes(), &text(key.as_bytes())].concat())?;
        let mut answer = [0; 1];
        fill(&mut self.stream, &mut answer, self.until)?;
        if answer != [0] {
            return Err(invalid(format!(
                "answers {} where 0 is expected: it is no store of PyTorch",
                answer[0]
            )));
        }
        self.say(&[&[GET][..], &text(key.as_bytes())].concat())?;
        let mut length = [0; 8];
        fill(&mut self.stream, &mut length, self.until)?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST {
            return Err(invalid(format!(
                "has a value of {length} bytes, where at most {LONGEST} are expected"
            )));
        }
        let mut value = vec![0; length as usize];
        fill(&mut self.stream, &mut value, self.until)?;
        Ok(value)
    }

    /// The address of this host on the connection.
    ///
    /// # Errors
    /// Those of the system.
    pub fn own_ip(&self) -> io::Result<IpAddr> {
        Ok(self.stream.local_addr()?.ip().to_canonical())
    }

    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(left(self.until)?))?;
        self.stream.write_all(bytes)
    }
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;
    use std::time::Duration;

    /// What two workers of `torchrun --rdzv-backend c10d --rdzv-id job --no-python --nproc-per-node 2` (torch 2.15.0) said to
    /// the store of its agent (`>`), and what it answered (`<`): rank 0 sets and reads, rank 1 reads.
    const RECORDED: [&[(char, &str)]; 2] = [
        &[
            ('>', "00cef7853c"),
            ('>', "010a00000000000000736169702f6a6f622f300d000000000000007b22706f7274223a343731317d"),
            ('>', "0601000000000000000a00000000000000736169702f6a6f622f30"),
            ('<', "00"),
            ('>', "030a00000000000000736169702f6a6f622f30"),
            ('<', "0d000000000000007b22706f7274223a343731317d"),
        ],
        &[
            ('>', "00cef7853c"),
            ('>', "0601000000000000000a00000000000000736169702f6a6f622f30"),
            ('<', "00"),
            ('>', "030a00000000000000736169702f6a6f622f30"),
            ('<', "0d000000000000007b22706f7274223a343731317d"),
        ],
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal"))
            .collect()
    }

    /// What `ask` gets from a server that expects and answers what is in `said`.
    fn replayed<T>(said: &[(char, &str)], ask: impl FnOnce(&mut Store) -> io::Result<T>) -> io::Result<T> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::scope(|s| {
            let server = s.spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                for (who, hex) in said {
                    let expected = bytes(hex);
                    if *who == '<' {
                        stream.write_all(&expected).expect("taken");
                        continue;
                    }
                    let mut got = vec![0; expected.len()];
                    stream.read_exact(&mut got).expect("as many bytes as recorded");
                    assert_eq!(got, expected, "recorded {hex}");
                }
            });
            let until = Instant::now() + Duration::from_secs(60);
            let got = Store::open(address, until).and_then(|mut store| ask(&mut store));
            server.join().expect("what was recorded");
            got
        })
    }

    #[test]
    fn torchruns_store_is_spoken_to_as_recorded() {
        let value = br#"{"port":4711}"#;
        let told = replayed(RECORDED[0], |store| {
            store.set("saip/job/0", value)?;
            store.get("saip/job/0")
        });
        assert_eq!(told.expect("recorded"), value);
        let heard = replayed(RECORDED[1], |store| store.get("saip/job/0"));
        assert_eq!(heard.expect("recorded"), value);
    }

    #[test]
    fn what_is_no_store_is_told() {
        let (hello, wait, get) = (RECORDED[1][0], RECORDED[1][1], RECORDED[1][3]);
        let error =
            |said: &[(char, &str)]| replayed(said, |store| store.get("saip/job/0")).expect_err("no store");
        assert!(error(&[hello, wait, ('<', "48")]).to_string().contains("no store of PyTorch"));
        let large = error(&[hello, wait, ('<', "00"), get, ('<', "ffffffffffffff7f")]);
        assert!(large.to_string().contains("at most 65536"), "{large}");
        assert_eq!(error(&[hello, wait]).kind(), ErrorKind::UnexpectedEof);
    }
}
