//! What a file is, by its first bytes: its name's ending says nothing certain.

/// What a file may be that weights are looked for in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing else is recognised, so it is read as safetensors.
    Safetensors,
    /// A zip archive, which `torch.save` writes since PyTorch 1.6.
    Zip,
    /// What `torch.save` wrote before PyTorch 1.6.
    TorchLegacy,
    /// Something that holds no weights which are read: what it is, and what to do.
    Foreign(&'static str),
}

/// How many of a file's first bytes [`kind`] looks at, at most.
pub(super) const LOOKED_AT: usize = 512;

/// The magic number with which `torch.save` began a file before PyTorch 1.6: protocol 2 and the integer
/// 0x1950a86a20f9469cfc6c (`MAGIC_NUMBER` in torch/serialization.py).
const TORCH_LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

const HTML: &str = "an HTML page: what was downloaded is the page around the file, or an error or login page; download the file itself";

/// First bytes, and what a file is that has them.
const MAGIC: [(&[u8], &str); 15] = [
    (
        b"version https://git-lfs",
        "a Git LFS pointer, which stands for the weights without having them; fetch them with `git lfs pull` in its repository, or download the file itself",
    ),
    (
        b"\x1f\x8b",
        "compressed with gzip; unpack it with `gunzip` (or `tar -xzf`) and give the weights file in it",
    ),
    (
        b"\x93NUMPY",
        "a NumPy array, which has no names; save a state dict of tensors with safetensors.torch.save_file or torch.save",
    ),
    (
        b"\x89HDF\r\n",
        "an HDF5 file, such as Keras writes; save a PyTorch state dict of one of the networks that `kd networks` lists",
    ),
    (
        b"GGUF",
        "a GGUF file of a language model; weights of one of the networks that `kd networks` lists are expected",
    ),
    (b"BZh", "compressed with bzip2; unpack it with `bunzip2` and give the weights file in it"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it with `unxz` and give the weights file in it"),
    (
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd; unpack it with `unzstd` and give the weights file in it",
    ),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and give the weights file in it"),
    (b"\x89PNG\r\n", "a PNG picture; give the weights file of a network"),
    (b"\xff\xd8\xff", "a JPEG picture; give the weights file of a network"),
    (b"%PDF-", "a PDF document; give the weights file of a network"),
    (b"PK\x05\x06", "an empty zip archive; copy or download the weights file again"),
    (b"ustar", "a tar archive; unpack it with `tar -xf` and give the weights file in it"),
    (
        b"{",
        "JSON text, such as a network's config or an index of several files; give the weights file itself",
    ),
];

/// What a file is that begins with these bytes; `start` has [`LOOKED_AT`] of them, or all.
pub(super) fn kind(start: &[u8]) -> Kind {
    // The header of a safetensors file is a JSON object behind 8 bytes of its length, which can look like anything.
    if start.get(8) == Some(&b'{') && !start.starts_with(b"PK\x03\x04") {
        return Kind::Safetensors;
    }
    if start.starts_with(b"PK\x03\x04") {
        return Kind::Zip;
    }
    if start.starts_with(TORCH_LEGACY) {
        return Kind::TorchLegacy;
    }
    for (magic, what) in MAGIC {
        let at = if magic == b"ustar" { 257 } else { 0 };
        if start.get(at..).is_some_and(|start| start.starts_with(magic)) {
            return Kind::Foreign(what);
        }
    }
    if is_html(start) {
        return Kind::Foreign(HTML);
    }
    if start.starts_with(b"\xef\xbb\xbf") {
        return Kind::Foreign(
            "text behind a byte order mark: a program took the file for text and changed it; copy or download it again",
        );
    }
    if is_onnx(start) {
        return Kind::Foreign(
            "an ONNX network, whose weights have lost PyTorch's names; save the state dict that it was exported from",
        );
    }
    if matches!(start, [0x80, 2..=5, ..]) {
        return Kind::Foreign(
            "a Python pickle that torch.save did not write; save the weights with torch.save(model.state_dict(), FILE)",
        );
    }
    Kind::Safetensors
}

fn is_html(start: &[u8]) -> bool {
    let text = start.trim_ascii_start();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let begins = |tag: &[u8]| text.get(..tag.len()).is_some_and(|s| s.eq_ignore_ascii_case(tag));
    begins(b"<!doctype") || begins(b"<html") || begins(b"<head") || begins(b"<?xml")
}

/// A ModelProto: field 1 is the format's version, a small number, and then comes the producer's name (field 2), text that
/// names an exporter, or another field of it that has a length (onnx.proto).
fn is_onnx(start: &[u8]) -> bool {
    matches!(start, [0x08, 1..=32, 0x12 | 0x1a | 0x22 | 0x32 | 0x3a | 0x42, len, ..] if *len > 0)
        && start.get(4..8).is_some_and(|text| text.iter().any(|byte| *byte != 0))
}
