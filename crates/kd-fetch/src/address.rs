//! What can be fetched: an address on the web, or a file of a model hub's repository.

use std::str::FromStr;

use kd_record::hash::hex;
use sha2::{Digest, Sha256};

/// Something that can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A file on the web: `https://HOST/PATH`, or `http://HOST/PATH`.
    Web {
        /// The address as it was given.
        url: String,
        /// The parts of its path in a cache: the host, and each part of the path. Where the address asks for something (`?id=1`), the
        /// question's hash is a folder above the file, so that two questions to one path are two files.
        parts: Vec<String>,
        /// Whether the connection is neither encrypted nor to this machine, so that nothing shows that the file arrives unchanged.
        is_open: bool,
    },
    /// Files of a hub's repository.
    Hub(HubAddress),
}

/// `hf://OWNER/NAME[@REVISION][/FILE]`: files of a hub's repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubAddress {
    /// Owner and name of the repository.
    pub repository: [String; 2],
    /// A branch, tag or commit: `main` where none is named.
    pub revision: String,
    /// The file in it. Not named: the weights, and the config beside them.
    pub file: Option<String>,
}

const EXPECTED: &str = "expected https://HOST/FILE or hf://OWNER/NAME[@REVISION][/FILE], such as hf://timm/tf_efficientnet_lite0.in1k";

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| Err(format!("`{text}`: {reason}; {EXPECTED}"));
        if text.contains(|letter: char| letter.is_control() || letter.is_whitespace()) {
            return wrong("an address has no spaces");
        }
        if let Some(rest) = text.strip_prefix("hf://") {
            return match hub(rest) {
                Some(address) => Ok(Self::Hub(address)),
                None => wrong("it names no repository, or a part of it can't be a file's name"),
            };
        }
        let (is_open, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return wrong("this kind of address is not known"),
        };
        // What stands behind a # is for whoever shows the file.
        let rest = rest.split('#').next().unwrap_or_default();
        let (path, question) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parts: Vec<String> = path.split('/').map(String::from).collect();
        if parts.len() < 2 || !parts.iter().all(|part| is_file_name(part)) {
            return wrong("it names no file");
        }
        if parts[0].contains('@') {
            return wrong("a name or password in an address would be kept and shown");
        }
        let host = parts[0].rsplit_once(':').map_or(parts[0].as_str(), |(host, _)| host);
        let here = ["127.0.0.1", "localhost", "[::1]"].contains(&host);
        if !question.is_empty() {
            let hash = hex(Sha256::new_with_prefix(question));
            parts.insert(parts.len() - 1, format!("asked-{}", &hash[..16]));
        }
        Ok(Self::Web { url: text.into(), parts, is_open: is_open && !here })
    }
}

fn hub(rest: &str) -> Option<HubAddress> {
    let (owner, rest) = rest.split_once('/')?;
    let (named, file) = match rest.split_once('/') {
        Some((named, file)) => (named, Some(file)),
        None => (rest, None),
    };
    let (name, revision) = named.split_once('@').unwrap_or((named, "main"));
    let parts = file.into_iter().flat_map(|file| file.split('/'));
    let all = [owner, name, revision].into_iter().chain(parts);
    let valid = all.into_iter().all(is_file_name);
    valid.then(|| HubAddress {
        repository: [owner.into(), name.into()],
        revision: revision.into(),
        file: file.map(String::from),
    })
}

/// Whether a part of a path can be the name of a file in a folder, on every system.
pub(crate) fn is_file_name(part: &str) -> bool {
    let allowed = |letter: char| {
        letter.is_alphanumeric()
            || matches!(
                letter,
                '.' | '-' | '_' | ':' | '[' | ']' | '+' | '=' | '%' | '~' | '@' | ','
            )
    };
    !part.is_empty() && part != "." && part != ".." && part.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_where_a_file_is() {
        let web = |text: &str| match text.parse().unwrap() {
            Address::Web { parts, is_open, .. } => (parts.join("/"), is_open),
            other => panic!("{other:?}"),
        };
        assert_eq!(web("https://a.org/b/c.pth#x"), ("a.org/b/c.pth".into(), false));
        let (first, second) = (web("https://a.org/uc?id=1"), web("https://a.org/uc?id=2#x"));
        assert!(first.0.starts_with("a.org/asked-") && first.0.ends_with("/uc"), "{first:?}");
        assert_ne!(first, second, "two questions to one path are two files");
        assert_eq!(web("http://a.org/c.pth"), ("a.org/c.pth".into(), true));
        assert_eq!(web("http://127.0.0.1:80/c.pth"), ("127.0.0.1:80/c.pth".into(), false));
        let hub = |text: &str| match text.parse().unwrap() {
            Address::Hub(HubAddress { repository, revision, file }) => {
                (repository.join("/"), revision, file)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(hub("hf://timm/a.in1k"), ("timm/a.in1k".into(), "main".into(), None));
        let (repository, revision, file) = hub("hf://o/n@v1/x/y.safetensors");
        assert_eq!((repository.as_str(), revision.as_str()), ("o/n", "v1"));
        assert_eq!(file.as_deref(), Some("x/y.safetensors"));
    }

    #[test]
    fn what_leads_out_of_the_cache_or_nowhere_is_refused() {
        for text in [
            "",
            "a.pth",
            "ftp://a/b",
            "https://a.org",
            "https://a.org/",
            "https://a.org/../x",
            "https://me:secret@a.org/x",
            "https:///x",
            "hf://timm",
            "hf://timm/",
            "hf://../x",
            "hf://a/b/../../c",
            "hf://a/b@/c",
            "hf://a/b/",
            "https://a.org/a b",
            "https://a.org/a\\b",
            "hf://a/b@../c",
            "https://a.org/x\n",
        ] {
            let message = text.parse::<Address>().unwrap_err();
            assert!(message.contains("expected https://"), "{message}");
        }
    }
}
