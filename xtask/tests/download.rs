//! A server that does what it should not: the download ends with the file or with one clear error.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::server::{Answer, Server};
use tempfile::TempDir;
use xtask::download::{Patience, download};

/// Long limits, so that a busy machine breaks none of them.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(120),
    stall: Duration::from_secs(120),
    attempts: 3,
    first_attempts: 3,
    retry_wait: Duration::from_millis(10),
};

fn content() -> Vec<u8> {
    (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

struct Case {
    server: Server,
    folder: TempDir,
}

impl Case {
    fn new(answers: Vec<Answer>) -> Self {
        Self { server: Server::start(content(), answers), folder: TempDir::new().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("file.part")
    }

    fn run(&self, bytes: Option<u64>) -> anyhow::Result<bool> {
        download(&self.server.url, bytes, &self.path(), &PATIENCE)
    }

    fn run_with(&self, patience: Patience) -> anyhow::Result<bool> {
        download(&self.server.url, Some(100_000), &self.path(), &patience)
    }

    /// Ends well, with the file as the server has it.
    fn arrives(&self) -> bool {
        let resumed = self.run(Some(100_000)).unwrap();
        assert!(fs::read(self.path()).unwrap() == content(), "other bytes");
        resumed
    }

    fn fails(&self, bytes: Option<u64>) -> String {
        format!("{:#}", self.run(bytes).unwrap_err())
    }
}

#[test]
fn a_good_server_is_asked_once() {
    let case = Case::new(vec![Answer::Well]);
    assert!(!case.arrives());
    assert_eq!(case.server.ranges(), [None]);
    assert!(case.server.requests()[0].to_lowercase().contains("accept-encoding: identity"));
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    let case = Case::new(vec![Answer::BreakOff(30_000), Answer::BreakOff(20_000), Answer::Well]);
    assert!(case.arrives());
    assert_eq!(case.server.ranges(), [None, Some(30_000), Some(50_000)]);
}

#[test]
fn a_server_that_breaks_off_often_but_gets_on_is_not_given_up() {
    let case = Case::new(vec![Answer::BreakOff(9_000)]);
    assert!(case.arrives());
    assert_eq!(case.server.ranges().len(), 12);
}

/// Tries with longer and longer limits, the last one hopeful: on a busy machine this test's own server may be silent for a second.
fn with_limits(works: impl Fn(Duration) -> Result<(), String>) {
    let mut found = Vec::new();
    for seconds in [1, 4, 20, 60] {
        match works(Duration::from_secs(seconds)) {
            Ok(()) => return,
            Err(why) => found.push(why),
        }
    }
    panic!("{found:#?}");
}

#[test]
fn a_stalled_connection_goes_on_after_the_timeout() {
    with_limits(|stall| {
        let case = Case::new(vec![Answer::Stall(40_000), Answer::Well]);
        let resumed = case.run_with(Patience { stall, attempts: 20, ..PATIENCE }).unwrap();
        assert!(fs::read(case.path()).unwrap() == content());
        let ranges = case.server.ranges();
        let expected = resumed && ranges == [None, Some(40_000)];
        expected.then_some(()).ok_or_else(|| format!("resumed: {resumed}, {ranges:?}"))
    });
}

#[test]
fn a_server_that_always_stalls_is_given_up() {
    with_limits(|stall| {
        let case = Case::new(vec![Answer::Stall(0)]);
        let patience = Patience { stall, attempts: 2, first_attempts: 2, ..PATIENCE };
        let error = case.run_with(patience).unwrap_err().to_string();
        let expected = format!("(no byte for {} s); gave up after 2 attempts", stall.as_secs());
        error.contains(&expected).then_some(()).ok_or(error)
    });
}

#[test]
fn an_earlier_part_is_gone_on_with() {
    let case = Case::new(vec![Answer::Well]);
    fs::write(case.path(), &content()[..70_000]).unwrap();
    assert!(case.arrives());
    assert_eq!(case.server.ranges(), [Some(70_000)]);
}

#[test]
fn a_whole_part_is_not_asked_for_again() {
    let case = Case::new(vec![Answer::Well]);
    fs::write(case.path(), content()).unwrap();
    assert!(case.arrives());
    assert!(case.server.requests().is_empty());
}

#[test]
fn a_part_that_is_too_long_is_dropped() {
    let case = Case::new(vec![Answer::Well]);
    fs::write(case.path(), vec![1; 100_001]).unwrap();
    case.arrives();
    assert_eq!(case.server.ranges(), [None]);
}

#[test]
fn without_a_known_length_the_server_tells_that_a_part_is_the_whole() {
    let case = Case::new(vec![Answer::Well]);
    fs::write(case.path(), content()).unwrap();
    assert!(case.run(None).unwrap());
    assert_eq!(case.server.ranges(), [Some(100_000)]);
    assert!(fs::read(case.path()).unwrap() == content());
}

#[test]
fn a_server_without_range_starts_over() {
    let case = Case::new(vec![Answer::BreakOff(30_000), Answer::NoRange]);
    case.arrives();
    assert_eq!(case.server.ranges(), [None, Some(30_000)]);
}

#[test]
fn a_server_without_range_that_always_breaks_off_is_given_up() {
    let case = Case::new(vec![Answer::NoRangeBreakOff(30_000)]);
    let error = case.fails(Some(100_000));
    assert!(error.contains("broke off after 30000 of 100000 bytes"), "{error}");
    assert!(error.contains("gave up after 3 attempts"), "{error}");
}

#[test]
fn a_wrong_range_is_not_appended() {
    let case = Case::new(vec![Answer::BreakOff(30_000), Answer::WrongRange, Answer::Well]);
    case.arrives();
    assert_eq!(case.server.ranges(), [None, Some(30_000), None]);
}

#[test]
fn a_wrong_length_is_refused_before_anything_is_kept() {
    let case = Case::new(vec![Answer::Longer(5)]);
    let error = case.fails(Some(100_000));
    assert!(error.contains("has 100005 bytes, the published archive 100000"), "{error}");
    assert_eq!(case.server.requests().len(), 1);
    assert_eq!(fs::metadata(case.path()).unwrap().len(), 0);
}

#[test]
fn a_server_that_tells_no_length_is_cut_off_after_the_known_one() {
    assert!(!Case::new(vec![Answer::Chunked(0)]).arrives());
    let case = Case::new(vec![Answer::Chunked(7)]);
    let error = case.fails(Some(100_000));
    assert!(error.contains("more than the 100000 bytes expected"), "{error}");
}

#[test]
fn an_early_end_is_noticed_where_the_server_tells_no_length() {
    let case = Case::new(vec![Answer::NoLength(30_000), Answer::Well]);
    assert!(case.arrives());
    assert_eq!(case.server.ranges(), [None, Some(30_000)]);
}

#[test]
fn not_found_is_an_error_at_once() {
    let case = Case::new(vec![Answer::Status(404)]);
    let error = case.fails(Some(100_000));
    assert!(error.contains("404") && error.contains("--url"), "{error}");
    assert_eq!(case.server.requests().len(), 1);
}

#[test]
fn a_server_error_is_tried_again() {
    let case = Case::new(vec![Answer::Status(500), Answer::Status(503), Answer::Well]);
    case.arrives();
    assert_eq!(case.server.requests().len(), 3);
    let error = Case::new(vec![Answer::Status(500)]).fails(Some(100_000));
    assert!(error.contains("500") && error.contains("gave up after 3 attempts"), "{error}");
}

#[test]
fn a_server_that_one_can_do_without_is_asked_once_before_the_first_byte() {
    let patience = Patience { first_attempts: 1, ..PATIENCE };
    let case = Case::new(vec![Answer::Status(503), Answer::Well]);
    let error = format!("{:#}", case.run_with(patience).unwrap_err());
    assert!(error.contains("503") && error.contains("gave up after 1 attempts"), "{error}");
    // Once something has arrived it is worth more.
    let case = Case::new(vec![Answer::BreakOff(10), Answer::Status(503), Answer::Well]);
    let patience = Patience { first_attempts: 1, ..PATIENCE };
    assert!(case.run_with(patience).unwrap());
}

#[test]
fn a_redirect_is_followed_and_keeps_the_range() {
    let case = Case::new(vec![Answer::Redirect("/other"), Answer::Well]);
    fs::write(case.path(), &content()[..10]).unwrap();
    case.arrives();
    assert_eq!(case.server.ranges(), [Some(10), Some(10)]);
    assert!(case.server.requests()[1].starts_with("GET /other "));
}

#[test]
fn redirects_in_a_circle_are_one_error() {
    let error = Case::new(vec![Answer::Redirect("/file.tar.gz")]).fails(Some(100_000));
    assert!(error.contains("leads nowhere"), "{error}");
}

#[test]
fn an_answer_that_is_no_http_is_one_error() {
    let error = Case::new(vec![Answer::Garbage]).fails(Some(100_000));
    assert!(error.contains("no proper answer"), "{error}");
}

#[test]
fn a_server_that_never_answers_is_asked_once() {
    let case = Case::new(vec![Answer::Silent]);
    let connect = Duration::from_millis(500);
    let error = case.run_with(Patience { connect, ..PATIENCE }).unwrap_err().to_string();
    assert!(error.contains("cannot reach") && error.contains("no answer in time"), "{error}");
    assert!(error.contains("--archive"), "{error}");
    assert!(case.server.requests().len() <= 1);
}

#[test]
fn a_closed_port_and_an_unknown_host_are_unreachable() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("part");
    for url in ["http://127.0.0.1:1/x", "http://no-such-host.invalid/x"] {
        let error = download(url, Some(5), &path, &PATIENCE).unwrap_err().to_string();
        assert!(error.contains(&format!("cannot reach {url}")), "{error}");
    }
}

#[test]
fn an_address_that_is_none_is_said_to_be_none() {
    let folder = TempDir::new().unwrap();
    for url in ["nothing", "file:///etc/hosts", "http://"] {
        let path = folder.path().join("part");
        let error = download(url, None, &path, &PATIENCE).unwrap_err().to_string();
        assert!(error.contains("not an address of a file on the web"), "{url}: {error}");
    }
}
