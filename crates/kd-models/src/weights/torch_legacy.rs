//! What `torch.save` wrote before PyTorch 1.6, and writes with `_use_new_zipfile_serialization=False`: pickles behind each other (a
//! magic number, the protocol, the machine, the objects, the storages' keys) and then each storage, its number of elements before
//! its bytes (`_legacy_save` in torch/serialization.py). The pickles are read as data; nothing of them is run.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use super::contents::Contents;
use super::pickle::{self, Pickle, Value};
use super::torch::{MAX_PICKLE, tensors};
use super::values::span;

const AGAIN: &str = "the file is cut off or damaged; copy or download it again";

/// Where a storage's bytes lie in the file.
struct Storage {
    start: u64,
    bytes: u64,
}

/// Reads which tensors a file of `len` bytes holds. Their offsets are in the file.
///
/// # Errors
/// What the file is instead, or what is wrong with it, and what to do.
pub(super) fn open<R: Read + Seek>(file: &mut R, len: u64) -> Result<Contents, String> {
    let unread = |error: std::io::Error| format!("it can't be read ({error}); {AGAIN}");
    let mut head = Vec::new();
    file.by_ref().take(MAX_PICKLE).read_to_end(&mut head).map_err(unread)?;
    let mut at = 0;
    let mut next = || -> Result<Pickle, String> {
        let (pickle, read) = pickle::parse_begin(&head[at..])
            .map_err(|reason| format!("pickle at byte {at}: {reason}"))?;
        at += read;
        Ok(pickle)
    };
    let (_magic, _protocol, machine) = (next()?, next()?, next()?);
    if is_big_endian(&machine) {
        return Err("its numbers are big-endian; save it anew on a little-endian machine".into());
    }
    let objects = next()?;
    let keys = next()?;
    let storages = storages(file, len, at as u64, &objects, &keys)?;
    let mut dicts = tensors(&objects, String::new())?;
    for (name, stored) in dicts.iter_mut().flat_map(|dict| &mut dict.tensors) {
        // A tensor of a kind that has no storage of its own is named when a network needs it.
        let Some(key) = stored.member.strip_prefix("data/") else { continue };
        let storage = storages
            .get(key)
            .ok_or_else(|| format!("tensor {name}: its elements are missing; {AGAIN}"))?;
        if let Some(bytes) = span(stored)
            && stored.offset.checked_add(bytes as u64).is_none_or(|end| end > storage.bytes)
        {
            return Err(format!(
                "tensor {name}: it spans {bytes} bytes from byte {} of a storage of {}; {AGAIN}",
                stored.offset, storage.bytes
            ));
        }
        stored.offset = stored.offset.saturating_add(storage.start);
        stored.member = String::new();
    }
    Ok(Contents { metadata: None, dicts })
}

/// Whether the machine that wrote the file says that it is big-endian.
fn is_big_endian(machine: &Pickle) -> bool {
    let Value::Dict(items) = machine.get(machine.root) else { return false };
    items.iter().any(|(key, value)| {
        machine.text(*key) == Some("little_endian")
            && matches!(machine.get(*value), Value::Bool(false))
    })
}

/// Where each storage lies, by its key: from byte `at` on, in the order of `keys`.
fn storages<R: Read + Seek>(
    file: &mut R,
    len: u64,
    mut at: u64,
    objects: &Pickle,
    keys: &Pickle,
) -> Result<BTreeMap<String, Storage>, String> {
    let sizes = element_sizes(objects)?;
    let Value::List(list) = keys.get(keys.root) else {
        return Err(format!("it has no list of its storages; {AGAIN}"));
    };
    let mut found = BTreeMap::new();
    for key in list {
        let key = keys.text(*key).ok_or_else(|| format!("a storage has no key; {AGAIN}"))?;
        let size =
            *sizes.get(key).ok_or_else(|| format!("storage {key} is of no tensor; {AGAIN}"))?;
        let ends = || format!("it ends within storage {key}; {AGAIN}");
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(at)).map_err(|_| ends())?;
        file.read_exact(&mut count).map_err(|_| ends())?;
        let bytes = u64::from_le_bytes(count).checked_mul(size).ok_or_else(ends)?;
        let start = at + 8;
        at = start.checked_add(bytes).filter(|end| *end <= len).ok_or_else(ends)?;
        found.insert(key.to_owned(), Storage { start, bytes });
    }
    Ok(found)
}

/// The bytes of an element of each storage, by its key. A storage is described as
/// `("storage", type, key, device, elements, view)`.
fn element_sizes(objects: &Pickle) -> Result<BTreeMap<String, u64>, String> {
    let mut sizes = BTreeMap::new();
    for description in objects.persistent() {
        let Some([kind, class, key, ..]) = objects.tuple(description) else { continue };
        let (Some("storage"), Some(class), Some(key)) =
            (objects.text(*kind), objects.global(*class), objects.text(*key))
        else {
            continue;
        };
        let class = class.rsplit('.').next().unwrap_or(class);
        let size = match class {
            "ByteStorage" | "CharStorage" | "BoolStorage" => 1,
            "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
            "FloatStorage" | "IntStorage" => 4,
            "DoubleStorage" | "LongStorage" | "ComplexFloatStorage" => 8,
            "ComplexDoubleStorage" => 16,
            other => {
                return Err(format!(
                    "its storage {key} is a {other}, whose size is not known; save the weights alone: torch.save(model.state_dict(), FILE)"
                ));
            }
        };
        sizes.insert(key.to_owned(), size);
    }
    Ok(sizes)
}
