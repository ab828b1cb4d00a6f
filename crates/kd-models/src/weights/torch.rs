//! PyTorch's own files: what `torch.save` writes since PyTorch 1.6, a zip archive with a pickle of the objects and a
//! member for each tensor's storage. The pickle is read as data; nothing of it is run.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Seek};

use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::contents::{Contents, Dict, Stored, Type};
use super::pickle::{self, Id, Pickle, Value};

/// No pickle of a network's weights comes near this size; a larger one is not read at all.
pub(super) const MAX_PICKLE: u64 = 64 << 20;
/// How many dicts within each other are looked through.
const MAX_DEPTH: usize = 8;

/// Opens a zip archive and reads which tensors it holds.
///
/// # Errors
/// What the file is instead, and what to do.
pub(super) fn open<R: Read + Seek>(file: R) -> Result<(ZipArchive<R>, Contents), String> {
    let mut archive = ZipArchive::new(file).map_err(|error| {
        format!("it begins as a zip archive, whose directory at the end can't be read ({error}): the file is cut off or damaged, or torch.export wrote it; copy or download it again, or save a program's weights alone: torch.save(program.state_dict, FILE)")
    })?;
    let names: Vec<String> =
        archive.file_names_raw().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let ends = |end: &str| names.iter().any(|name| name.ends_with(end));
    let mut pickles = names.iter().filter(|name| name.rsplit('/').next() == Some("data.pkl"));
    let Some(pickle) = pickles.next() else {
        return Err(if ends(".npy") {
            "it is an archive of NumPy arrays; save the state dict with safetensors.torch.save_file or torch.save".into()
        } else {
            "it is a zip archive without data.pkl, so torch.save did not write it; unpack it and give the weights file in it".into()
        });
    };
    if ends("constants.pkl") {
        return Err("it is a TorchScript archive, a program with its weights; save them alone in Python: torch.save(torch.jit.load(FILE).state_dict(), NEW)".into());
    }
    let folder = pickle.strip_suffix("data.pkl").unwrap_or_default().to_string();
    let byte_order = format!("{folder}byteorder");
    if names.contains(&byte_order)
        && member(&mut archive, &byte_order, 16)?.trim_ascii() != b"little"
    {
        return Err("its numbers are big-endian; save it anew on a little-endian machine".into());
    }
    let pickle = pickle::parse(&member(&mut archive, pickle, MAX_PICKLE)?)?;
    let dicts = tensors(&pickle, folder)?;
    Ok((archive, Contents { metadata: None, dicts }))
}

/// The dicts of tensors in a pickle; `folder` stands before the names of all members, which are `data/` and a storage's key.
///
/// # Errors
/// When there are none, or a tensor's description is damaged.
pub(super) fn tensors(pickle: &Pickle, folder: String) -> Result<Vec<Dict>, String> {
    let mut found = Found { folder, dicts: Vec::new(), seen: HashSet::new() };
    found.look_through(pickle, pickle.root, String::new(), 0)?;
    match found.dicts.is_empty() {
        true => Err(no_tensors(pickle)),
        false => Ok(found.dicts),
    }
}

/// A whole member of the archive, which is small.
fn member<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    name: &str,
    limit: u64,
) -> Result<Vec<u8>, String> {
    let file = opened(archive, name)?;
    let mut bytes = Vec::new();
    let damaged = |error| damaged(name, &error);
    file.take(limit + 1).read_to_end(&mut bytes).map_err(damaged)?;
    match bytes.len() as u64 > limit {
        true => Err(format!(
            "its member {name} has more than {limit} bytes; a state dict alone is expected: torch.save(model.state_dict(), FILE)"
        )),
        false => Ok(bytes),
    }
}

/// A member that lies in the archive as it is, as torch.save leaves all of them.
fn opened<'a, R: Read + Seek>(
    archive: &'a mut ZipArchive<R>,
    name: &str,
) -> Result<ZipFile<'a, R>, String> {
    let file = archive.by_name(name).map_err(|error| match error {
        ZipError::FileNotFound => format!(
            "it has no member {name}, where elements of a tensor are expected; copy or download it again"
        ),
        error => format!("its member {name} can't be read ({error}); copy or download it again"),
    })?;
    match file.compression() {
        CompressionMethod::Stored => Ok(file),
        method => Err(format!(
            "its member {name} is compressed ({method}), so another program packed the archive anew; save the weights with torch.save, or pack without compression"
        )),
    }
}

fn damaged(name: &str, error: &std::io::Error) -> String {
    format!(
        "its member {name} is damaged ({error}); copy or download it again, or save it anew if it was written without checksums (torch.serialization.set_crc32_options(False))"
    )
}

/// Bytes of a member, once the archive's checksum of the whole member is found right.
///
/// # Errors
/// When the member isn't there, is shorter or damaged.
pub(super) fn bytes<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    name: &str,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, String> {
    let mut file = opened(archive, name)?;
    let damaged = |error| damaged(name, &error);
    std::io::copy(&mut file.by_ref().take(offset), &mut std::io::sink()).map_err(damaged)?;
    let mut bytes = Vec::new();
    file.by_ref().take(len as u64).read_to_end(&mut bytes).map_err(damaged)?;
    std::io::copy(&mut file, &mut std::io::sink()).map_err(damaged)?;
    match bytes.len() == len {
        true => Ok(bytes),
        false => Err(format!(
            "its member {name} ends after {} of {len} bytes from offset {offset}; copy or download it again",
            bytes.len()
        )),
    }
}

/// What is found in a pickle.
struct Found {
    /// What stands before the names of all members.
    folder: String,
    dicts: Vec<Dict>,
    seen: HashSet<Id>,
}

impl Found {
    /// Collects the tensors of a dict and of the dicts in it. `key` has the keys on the way to it.
    fn look_through(
        &mut self,
        pickle: &Pickle,
        id: Id,
        key: String,
        depth: usize,
    ) -> Result<(), String> {
        let Value::Dict(items) = pickle.get(id) else { return Ok(()) };
        if depth > MAX_DEPTH || !self.seen.insert(id) {
            return Ok(());
        }
        let mut tensors = BTreeMap::new();
        let at = self.dicts.len();
        for (name, value) in items {
            let Some(name) = pickle.text(*name) else { continue };
            if let Value::Dict(_) = pickle.get(*value) {
                let inner = if key.is_empty() { name.into() } else { format!("{key}.{name}") };
                self.look_through(pickle, *value, inner, depth + 1)?;
            } else if let Some(tensor) = self.tensor(pickle, *value) {
                let tensor = tensor.map_err(|reason| format!("tensor {name}: {reason}"))?;
                tensors.insert(name.to_string(), tensor);
            }
        }
        if !tensors.is_empty() {
            self.dicts.insert(at, Dict { key, tensors });
        }
        Ok(())
    }

    /// The tensor that a value describes; `None` where it is none.
    fn tensor(&self, pickle: &Pickle, id: Id) -> Option<Result<Stored, String>> {
        let Value::Call { callable, arguments } = pickle.get(id) else { return None };
        let (mut callable, mut arguments) = (*callable, *arguments);
        // A parameter wraps a tensor, and a subclass's tensor the call that makes it (torch/_utils.py, torch/_tensor.py).
        for _ in 0..MAX_DEPTH {
            let name = pickle.global(callable)?;
            let given = pickle.tuple(arguments)?;
            match (name, given) {
                ("torch._utils._rebuild_tensor_v2", given) => {
                    let tensor = self.rebuilt(pickle, given);
                    return Some(tensor.ok_or_else(|| "its description is damaged".into()));
                }
                (
                    "torch._utils._rebuild_parameter"
                    | "torch._utils._rebuild_parameter_with_state",
                    [data, ..],
                ) => {
                    let Value::Call { callable: inner, arguments: with } = pickle.get(*data) else {
                        return None;
                    };
                    (callable, arguments) = (*inner, *with);
                }
                ("torch._tensor._rebuild_from_type_v2", [function, _, with, ..]) => {
                    (callable, arguments) = (*function, *with);
                }
                // Sparse, quantised and newer kinds: named when a network needs them.
                (name, _) if name.starts_with("torch._utils._rebuild_") => {
                    let kind = name.trim_start_matches("torch._utils._rebuild_");
                    return Some(Ok(Stored {
                        shape: Vec::new(),
                        dtype: Type::Other(format!("of the kind {kind}")),
                        member: String::new(),
                        offset: 0,
                        strides: Vec::new(),
                    }));
                }
                _ => return None,
            }
        }
        None
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, ...)` of torch/_utils.py; a storage is described as
    /// `("storage", type, member, device, elements)`.
    fn rebuilt(&self, pickle: &Pickle, arguments: &[Id]) -> Option<Stored> {
        let [storage, offset, size, stride, ..] = arguments else { return None };
        let Value::Persistent(storage) = pickle.get(*storage) else { return None };
        let [_, class, member, ..] = pickle.tuple(*storage)? else { return None };
        let class = pickle.global(*class)?;
        let class = class.rsplit('.').next().unwrap_or(class);
        let dtype = match class {
            "FloatStorage" => Type::F32,
            "DoubleStorage" => Type::F64,
            "HalfStorage" => Type::F16,
            "BFloat16Storage" => Type::BF16,
            other => Type::Other(other.trim_end_matches("Storage").to_string()),
        };
        let (shape, strides) = (pickle.counts(*size)?, pickle.counts(*stride)?);
        let offset =
            (pickle.count(*offset)? as u64).checked_mul(dtype.size().unwrap_or(1) as u64)?;
        let member = format!("{}data/{}", self.folder, pickle.text(*member)?);
        (shape.len() == strides.len()).then_some(Stored { shape, dtype, member, offset, strides })
    }
}

/// What a pickle without tensors holds, and what to do.
fn no_tensors(pickle: &Pickle) -> String {
    let class = |id: Id| match pickle.get(id) {
        Value::Call { callable, .. } => match pickle.get(*callable) {
            // Before PyTorch 1.6 a module's class lies outside, beside its source: ("module", class, ...).
            Value::Persistent(description) => pickle.global(*pickle.tuple(*description)?.get(1)?),
            _ => pickle.global(*callable),
        },
        _ => None,
    };
    let cure = "save its weights alone: torch.save(model.state_dict(), FILE)";
    if let Some(class) = class(pickle.root) {
        return format!(
            "it holds a whole Python object of class {class}, whose code is needed to read it; {cure}"
        );
    }
    if let Value::Dict(items) = pickle.get(pickle.root) {
        let object =
            items.iter().find_map(|(key, value)| Some((pickle.text(*key)?, class(*value)?)));
        if let Some((key, class)) = object {
            return format!(
                "its `{key}` is a whole Python object of class {class}, whose code is needed to read it; {cure}"
            );
        }
    }
    format!("it holds no dict of named tensors; {cure}")
}
