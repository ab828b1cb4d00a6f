//! PNG and JPEG files of any size, as the 32x32 colour images that the networks take.
//!
//! What is done to a picture, in this order:
//!
//! 1. It is turned upright as its EXIF orientation says.
//! 2. The largest square in its middle is cut out.
//! 3. 16 bits a colour become 8; grey becomes equal red, green and blue; transparent parts lie on white.
//! 4. The square is scaled to 32x32, bilinear over the whole area of each new pixel (torchvision's
//!    `Resize` with antialiasing). A picture of 32x32 keeps its bytes.
//!
//! Colour profiles are not applied. Of an animation the first picture counts.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};

use crate::{Error, Result};

/// Height and width of the images that come out.
pub const SIDE: usize = 32;
/// Bytes of such an image.
const PIXELS: usize = 3 * SIDE * SIDE;

/// Most bytes of a file, and of the picture in it before it is scaled down: some 89 million pixels.
/// A crafted file can announce more than 10 GiB in a few bytes.
const MAX_BYTES: u64 = 256 << 20;

/// Names that picture files end with; of these, PNG and JPEG can be read.
const ENDINGS: [&str; 12] =
    ["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm", "heic", "avif"];

/// Reads a PNG or JPEG file (its contents tell which), scaled to 32x32: bytes `[3, 32, 32]`, red,
/// green, blue.
///
/// # Errors
/// When it can't be read, is cut off or damaged, too large, or another kind of file; it is named.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let square = decode(path, &contents(path)?)?;
    let mut pixels = vec![0; PIXELS];
    for (at, pixel) in square.pixels().enumerate() {
        for (channel, &value) in pixel.0.iter().enumerate() {
            pixels[channel * SIDE * SIDE + at] = value;
        }
    }
    Ok(pixels)
}

/// The pictures below a folder, by name and in the names' order. Hidden files and linked folders are left
/// out, and so is what isn't named like a picture.
///
/// # Errors
/// When the folder, or one in it, can't be read.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(folder, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for (path, kind) in entries(folder)? {
        if kind.is_dir() {
            collect(&path, found)?;
        } else if is_named_like_a_picture(&path) && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// What lies in a folder, hidden things left out.
pub(crate) fn entries(folder: &Path) -> Result<Vec<(PathBuf, fs::FileType)>> {
    let io = |source| Error::Io { path: folder.into(), source };
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            all.push((entry.path(), entry.file_type().map_err(io)?));
        }
    }
    Ok(all)
}

fn is_named_like_a_picture(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

fn unreadable(path: &Path, reason: impl ToString) -> Error {
    Error::Picture { path: path.into(), reason: reason.to_string() }
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.into(), source };
    let about = fs::metadata(path).map_err(io)?;
    if !about.is_file() {
        return Err(unreadable(path, "it is not a regular file"));
    }
    if about.len() > MAX_BYTES {
        let reason = format!("it has {} bytes; at most {MAX_BYTES} are read", about.len());
        return Err(unreadable(path, reason));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)).map_err(io)?;
    Ok(bytes)
}

/// The picture upright, its middle scaled to 32x32.
fn decode(path: &Path, bytes: &[u8]) -> Result<RgbImage> {
    if bytes.is_empty() {
        return Err(unreadable(path, "the file is empty"));
    }
    let refused = |error: image::ImageError| unreadable(path, error);
    let mut reader = ImageReader::new(Cursor::new(bytes));
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let reader = reader.with_guessed_format().map_err(|error| unreadable(path, error))?;
    if reader.format().is_none() {
        return Err(unreadable(path, "its contents are neither"));
    }
    if reader.format() == Some(image::ImageFormat::Jpeg) && !jpeg_has_an_end(bytes) {
        return Err(unreadable(path, "the file is cut off"));
    }
    let mut decoder = reader.into_decoder().map_err(refused)?;
    let (width, height) = decoder.dimensions();
    if decoder.total_bytes() > MAX_BYTES {
        let reason = format!("it is {width}x{height}, more than {MAX_BYTES} bytes");
        return Err(unreadable(path, reason));
    }
    let orientation = decoder.orientation().map_err(refused)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(refused)?;
    // Cut first, so that all that follows is done to the square alone; its middle stays the middle.
    let side = width.min(height);
    picture = picture.crop_imm((width - side) / 2, (height - side) / 2, side, side);
    picture.apply_orientation(orientation);
    let square = match picture.color().has_alpha() {
        true => on_white(&picture),
        false => picture.into_rgb8(),
    };
    Ok(imageops::resize(&square, SIDE as u32, SIDE as u32, FilterType::Triangle))
}

fn on_white(picture: &DynamicImage) -> RgbImage {
    let picture = picture.to_rgba8();
    let mut opaque = RgbImage::new(picture.width(), picture.height());
    for (to, from) in opaque.pixels_mut().zip(picture.pixels()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        let blend = |value: u32| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        to.0 = [blend(red), blend(green), blend(blue)];
    }
    opaque
}

/// Whether a JPEG's data has an end. The decoder fills up what is missing in grey and says nothing.
fn jpeg_has_an_end(bytes: &[u8]) -> bool {
    // Segments with their lengths, up to the image's own data (a preview before it has an end too);
    // in that, 0xff is followed by 0xd9 at the end alone.
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            0xff => at += 1,
            0xda => return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}
