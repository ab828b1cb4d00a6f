//! A web server on this machine that behaves as badly as it is told to.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How to answer one request.
#[derive(Clone)]
pub enum Answer {
    /// As it should be: the rest for a Range, else the whole.
    Well,
    /// The whole, whatever Range was asked for.
    NoRange,
    /// This many bytes, then the connection is closed.
    BreakOff(usize),
    /// The whole from the start, and closed after this many bytes.
    NoRangeBreakOff(usize),
    /// This many bytes, then silence.
    Stall(usize),
    /// Silence before the head.
    Silent,
    /// Other bytes of the same length.
    Wrong,
    /// A length that is announced and sent, but not the file's.
    Longer(usize),
    /// No length, in chunks, followed by that many bytes too many.
    Chunked(usize),
    /// No length; this many bytes, and the end of the connection for the end of the file.
    NoLength(usize),
    /// A Range other than the one asked for.
    WrongRange,
    Status(u16),
    /// To this path on the same server.
    Redirect(&'static str),
    /// No HTTP at all.
    Garbage,
}

pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Gives the answers in turn, the last one for ever.
    pub fn start(content: Vec<u8>, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file.tar.gz", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (requests, stop) = (requests.clone(), stop.clone());
            move || {
                let mut count = 0;
                let mut silent = Vec::new();
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let mut stream = stream.unwrap();
                    let Some(head) = read_head(&stream) else { continue };
                    let range = range(&head);
                    requests.lock().unwrap().push(head);
                    let answer = answers[count.min(answers.len() - 1)].clone();
                    count += 1;
                    // The client may have gone: no concern of the server's.
                    let open = respond(&mut stream, &content, range, &answer).unwrap_or(false);
                    if open {
                        silent.push(stream);
                    }
                }
            }
        });
        Self { url, requests, stop, thread: Some(thread) }
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// Where each request asked the file to begin.
    pub fn ranges(&self) -> Vec<Option<usize>> {
        self.requests().iter().map(|head| range(head)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let address = self.url.trim_start_matches("http://").split('/').next().unwrap();
        let _ = TcpStream::connect(address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn read_head(stream: &TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let mut head = String::new();
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return None,
            Ok(_) if line == "\r\n" => return Some(head),
            Ok(_) => head += &line,
        }
    }
}

fn range(head: &str) -> Option<usize> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("range:"))?;
    line.split_once("bytes=")?.1.trim_end().strip_suffix('-')?.parse().ok()
}

/// Answers, and says whether the connection is to stay open in silence.
fn respond(
    stream: &mut TcpStream,
    content: &[u8],
    range: Option<usize>,
    answer: &Answer,
) -> std::io::Result<bool> {
    let whole = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
    };
    let partial = |start: usize| {
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\n\
             Connection: close\r\n\r\n",
            content.len() - start,
            content.len() - 1,
            content.len()
        )
    };
    let (head, body) = match range {
        Some(start) if start >= content.len() => {
            let head = format!(
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{}\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n",
                content.len()
            );
            (head, &content[..0])
        }
        Some(start) => (partial(start), &content[start..]),
        None => (whole(content.len()), content),
    };
    match answer {
        Answer::Well => {
            stream.write_all(head.as_bytes())?;
            stream.write_all(body)?;
        }
        Answer::NoRange => {
            stream.write_all(whole(content.len()).as_bytes())?;
            stream.write_all(content)?;
        }
        Answer::BreakOff(bytes) => {
            stream.write_all(head.as_bytes())?;
            stream.write_all(&body[..(*bytes).min(body.len())])?;
        }
        Answer::NoRangeBreakOff(bytes) => {
            stream.write_all(whole(content.len()).as_bytes())?;
            stream.write_all(&content[..*bytes])?;
        }
        Answer::Stall(bytes) => {
            stream.write_all(head.as_bytes())?;
            stream.write_all(&body[..*bytes])?;
            return Ok(true);
        }
        Answer::Silent => return Ok(true),
        Answer::Wrong => {
            stream.write_all(head.as_bytes())?;
            stream.write_all(&body.iter().map(|byte| !byte).collect::<Vec<_>>())?;
        }
        Answer::Longer(more) => {
            stream.write_all(whole(content.len() + more).as_bytes())?;
            stream.write_all(content)?;
            stream.write_all(&vec![0; *more])?;
        }
        Answer::Chunked(more) => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
            stream.write_all(head.as_bytes())?;
            for chunk in [content, &vec![0; *more]] {
                if !chunk.is_empty() {
                    stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
                    stream.write_all(chunk)?;
                    stream.write_all(b"\r\n")?;
                }
            }
            stream.write_all(b"0\r\n\r\n")?;
        }
        Answer::NoLength(bytes) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            stream.write_all(&content[..*bytes])?;
        }
        Answer::WrongRange => {
            stream.write_all(partial(1).as_bytes())?;
            stream.write_all(&content[1..])?;
        }
        Answer::Status(status) => {
            let text = "<html>no</html>";
            let head = format!("HTTP/1.1 {status} No\r\nContent-Length: {}\r\n", text.len());
            stream.write_all(format!("{head}Connection: close\r\n\r\n{text}").as_bytes())?;
        }
        Answer::Redirect(path) => {
            let head = format!("HTTP/1.1 302 Found\r\nLocation: {path}\r\nContent-Length: 0\r\n");
            stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
        }
        Answer::Garbage => stream.write_all(b"220 files.example ready\r\n")?,
    }
    Ok(false)
}
