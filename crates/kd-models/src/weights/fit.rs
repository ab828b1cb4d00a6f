//! Which of a file's tensors are those of a network: the dict that they lie in, what stands before their names, and other
//! projects' names of the last layer and of shortcuts are found by what fits the network. Where two things fit, nothing is chosen.

use std::collections::BTreeMap;
use std::path::Path;

use super::check;
use super::contents::{Contents, Dict, Stored, Type};
use super::names::{OtherNames, other_names};
use crate::graph::Graph;
use crate::{Error, Result};

/// What the last layer is called elsewhere: `fc` in torchvision, RepDistiller (models/resnet.py) and chenyaofo's
/// pytorch-cifar-models (pytorch_cifar_models/resnet.py), `linear` in akamaster's pytorch_resnet_cifar10.
const HEADS: [&str; 5] = ["fc", "linear", "classifier", "head", "output"];

/// What a shortcut with weights is called in torchvision, RepDistiller and chenyaofo's pytorch-cifar-models, and in networks of
/// this crate; and in akamaster's pytorch_resnet_cifar10 and kuangliu's pytorch-cifar.
const SHORTCUTS: (&str, &str) = (".downsample.", ".shortcut.");

/// A file's tensors under a network's names.
#[derive(Clone)]
pub(super) struct View<'a> {
    dict: &'a Dict,
    /// What was removed from the front of the names.
    prefix: String,
    /// The last layer's name in the file, where it is another one than the network's.
    head: Option<&'static str>,
    /// Whether shortcuts have the other name of [`SHORTCUTS`].
    renames_shortcuts: bool,
    /// Whose names the layers have, where it is another code base's.
    names_of: Option<&'static str>,
    /// By the network's names.
    pub(super) tensors: BTreeMap<String, &'a Stored>,
    /// The names in the same dict without the prefix.
    beside: Vec<&'a str>,
}

/// The tensors of the file that are the network's. Where none fit wholly, those that come nearest, for the message of what
/// is wrong with them.
///
/// # Errors
/// When several fit.
pub(super) fn choose<'a>(path: &Path, graph: &Graph, contents: &'a Contents) -> Result<View<'a>> {
    let views = views(graph, contents);
    for any_classes in [false, true] {
        let fitting: Vec<_> =
            views.iter().filter(|view| view.fits(graph, any_classes)).cloned().collect();
        if !fitting.is_empty() {
            return only(path, graph, fitting);
        }
    }
    let nearest = views.into_iter().rev().max_by_key(|view| view.matching(graph));
    nearest
        .ok_or_else(|| Error::Unusable { path: path.into(), reason: "it holds no tensors".into() })
}

/// Whether tensors of the file are those of a network like this one, for any number of classes.
pub(super) fn any_fits(graph: &Graph, contents: &Contents) -> bool {
    views(graph, contents).iter().any(|view| view.fits(graph, true))
}

/// The number of classes of the file's tensors: that of the network where such ones are there, or that of the ones which
/// otherwise fit; `None` when no last layer is there.
///
/// # Errors
/// When several fit and none has been named by `prefer`.
pub(super) fn classes(
    path: &Path,
    graph: &Graph,
    contents: &Contents,
    prefer: bool,
) -> Result<Option<usize>> {
    if let Some(metadata) = &contents.metadata {
        return Ok(Some(metadata.classes));
    }
    let views = views(graph, contents);
    if prefer && views.iter().any(|view| view.fits(graph, false)) {
        return Ok(Some(graph.classes()));
    }
    let fitting: Vec<_> = views.into_iter().filter(|view| view.fits(graph, true)).collect();
    let view = match fitting.is_empty() {
        true => choose(path, graph, contents)?,
        false => only(path, graph, fitting)?,
    };
    Ok(check::classes(graph, None, &view.tensors))
}

/// The one view of several that all fit.
fn only<'a>(path: &Path, graph: &Graph, mut fitting: Vec<View<'a>>) -> Result<View<'a>> {
    // A dict that another key shows again has the same tensors at the same places of the file.
    let first = fitting.remove(0);
    match fitting.iter().find(|other| other.tensors != first.tensors) {
        None => Ok(first),
        Some(other) => Err(Error::SeveralFit {
            path: path.into(),
            network: graph.name().into(),
            first: first.place(),
            second: other.place(),
        }),
    }
}

/// Every way to read the file's names.
fn views<'a>(graph: &Graph, contents: &'a Contents) -> Vec<View<'a>> {
    let first = graph.parameters().next().map_or("", |spec| spec.name.as_str());
    let own_head = graph.head().name.as_str();
    let others = other_names(graph);
    let mut views = Vec::new();
    for dict in &contents.dicts {
        let before = |name: &'a String, first: &str| {
            name.strip_suffix(first).filter(|rest| rest.ends_with('.') || rest.is_empty())
        };
        let mut prefixes = vec![""];
        let named = |name| before(name, first).filter(|rest| !rest.is_empty());
        prefixes.extend(dict.tensors.keys().filter_map(named));
        for prefix in prefixes {
            let has = |head: &str| dict.tensors.contains_key(&format!("{prefix}{head}.weight"));
            let heads = HEADS.iter().filter(|head| **head != own_head && has(head));
            let mut heads: Vec<_> = heads.map(|head| Some(*head)).collect();
            if has(own_head) || heads.is_empty() {
                heads = vec![None];
            }
            views.extend(heads.into_iter().map(|head| View::new(dict, prefix, head, graph, None)));
        }
        for other in &others {
            let first = format!("{}.weight", other.first);
            let prefixes = dict.tensors.keys().filter_map(|name| before(name, &first));
            views.extend(prefixes.map(|prefix| View::new(dict, prefix, None, graph, Some(other))));
        }
    }
    views
}

impl<'a> View<'a> {
    fn new(
        dict: &'a Dict,
        prefix: &str,
        head: Option<&'static str>,
        graph: &Graph,
        theirs: Option<&OtherNames>,
    ) -> Self {
        let own_head = graph.head().name.as_str();
        let (own, other) = SHORTCUTS;
        let renames_shortcuts = graph.parameters().any(|spec| spec.name.contains(own))
            && dict.tensors.keys().any(|name| name.contains(other));
        let mut tensors = BTreeMap::new();
        let mut beside = Vec::new();
        for (name, stored) in &dict.tensors {
            let Some(rest) = name.strip_prefix(prefix) else {
                beside.push(name.as_str());
                continue;
            };
            let renamed = theirs.and_then(|theirs| {
                let (layer, of) = rest.rsplit_once('.')?;
                Some(format!("{}.{of}", theirs.layers.get(layer)?))
            });
            let of_head = head.and_then(|head| rest.strip_prefix(head)?.strip_prefix('.'));
            let name = match (renamed, of_head) {
                (Some(renamed), _) => renamed,
                (None, Some(of)) => format!("{own_head}.{of}"),
                (None, None) if renames_shortcuts => rest.replace(other, own),
                (None, None) => rest.to_string(),
            };
            tensors.insert(name, stored);
        }
        let (prefix, names_of) = (prefix.into(), theirs.map(|theirs| theirs.of));
        Self { dict, prefix, head, renames_shortcuts, names_of, tensors, beside }
    }

    /// Whether these are the network's tensors and no others, each of its shape; with `any_classes`, the last layer may have
    /// another number of rows.
    fn fits(&self, graph: &Graph, any_classes: bool) -> bool {
        let head = &graph.head().parameters;
        let fits = |name: &str, shape: &[usize]| {
            let Some(found) = self.tensors.get(name) else { return false };
            let free = any_classes && head.iter().any(|spec| spec.name == name);
            let from = usize::from(free && found.shape.len() == shape.len());
            found.shape[from..] == shape[from..]
        };
        graph.tensors().all(|spec| fits(&spec.name, &spec.shape))
            && check::extra(graph, &self.tensors).is_none()
    }

    /// How many of the network's tensors are there, by name and, at twice the weight, by shape.
    fn matching(&self, graph: &Graph) -> usize {
        let found = graph.tensors().filter_map(|spec| Some((self.tensors.get(&spec.name)?, spec)));
        found.map(|(found, spec)| 1 + usize::from(found.shape == spec.shape)).sum()
    }

    /// Where these tensors lie in the file, for a message.
    fn place(&self) -> String {
        match (self.dict.key.as_str(), self.prefix.as_str()) {
            ("", "") => "the tensors of the outermost dict".into(),
            ("", prefix) => format!("the tensors under `{prefix}`"),
            (key, "") => format!("the dict `{key}`"),
            (key, prefix) => format!("the tensors under `{prefix}` in the dict `{key}`"),
        }
    }

    /// Sentences on what was done to read the network's tensors; none for a file that is as this crate writes it.
    pub(super) fn notes(&self, path: &Path, graph: &Graph, contents: &Contents) -> Vec<String> {
        let mut done = Vec::new();
        if !(self.dict.key.is_empty() && self.prefix.is_empty()) {
            let others = contents.dicts.iter().filter(|dict| dict.key != self.dict.key);
            let others: Vec<_> = others
                .map(|dict| match dict.key.is_empty() {
                    true => "tensors outside of any dict".to_owned(),
                    false => format!("the dict {:?}", dict.key),
                })
                .collect();
            let removed = match self.prefix.is_empty() {
                true => String::new(),
                false => format!(", without the `{}` before their names", self.prefix),
            };
            done.push(format!("takes {}{removed}", self.place()));
            if !others.is_empty() {
                done.push(format!("leaves aside {}", others.join(", ")));
            }
        }
        if let (false, Some(first)) = (self.beside.is_empty(), self.beside.first()) {
            done.push(format!(
                "leaves {} tensors under other names aside ({first}, ...)",
                self.beside.len()
            ));
        }
        if let Some(head) = self.head {
            done.push(format!("takes `{head}` for `{}`", graph.head().name));
        }
        if self.renames_shortcuts {
            let (own, other) = SHORTCUTS;
            done.push(format!(
                "takes `{}` for `{}`",
                other.trim_matches('.'),
                own.trim_matches('.')
            ));
        }
        if let Some(of) = self.names_of {
            done.push(format!("takes {of}'s names of the layers for its own"));
        }
        for (dtype, how) in [
            (Type::F16, "widens F16 to F32"),
            (Type::BF16, "widens BF16 to F32"),
            (Type::F64, "rounds F64 to F32"),
        ] {
            let has = |name: &str| self.tensors.get(name).is_some_and(|t| t.dtype == dtype);
            if graph.tensors().any(|spec| has(&spec.name)) {
                done.push(how.into());
            }
        }
        match done.is_empty() {
            true => Vec::new(),
            false => vec![format!("{}: kd {}", path.display(), done.join("; "))],
        }
    }
}
