//! PNG, JPEG, WebP, BMP and GIF files of any size, as the square colour pictures that the networks take.
//!
//! What is done to a file's picture, in this order:
//!
//! 1. It is turned upright as its EXIF orientation says.
//! 2. The largest square in its middle is cut out.
//! 3. 16 bits a colour become 8; grey becomes equal red, green and blue; transparent parts are laid on white.
//! 4. The square is scaled to the side that is asked for, bilinearly over the whole area of each new pixel (as torchvision's
//!    `Resize` does with antialiasing). A square of that side keeps its bytes.
//!
//! Colour profiles are not applied. Of an animation the first picture is taken.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};

use crate::scaling::{MAX_SIDE, Scaling};
use crate::source::Picture;
use crate::{Error, Result, jpeg};

/// Height and width in pixels of CIFAR's pictures, which one's own pictures are scaled to where no size is set.
pub const SIDE: usize = 32;

/// The most bytes that a file may have, and the picture in it before it is scaled down: some 89 million pixels.
/// A crafted file can announce more than 10 GiB in a few bytes.
pub(crate) const MAX_BYTES: u64 = 256 << 20;

/// The endings of names in shards whose files are taken for pictures.
pub(crate) const PICTURE_ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// The endings of picture files' names; of these kinds, PNG, JPEG, WebP, BMP and GIF can be read.
const ENDINGS: [&str; 12] =
    ["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm", "heic", "avif"];

/// Reads a PNG, JPEG, WebP, BMP or GIF file (its contents tell which) as a picture of shape `[3, side, side]`; see the module's text.
///
/// # Errors
/// When `side` is zero or above 4096, and when the file can't be read, is cut off or damaged, too large, or of another kind;
/// the error names it.
pub fn read(path: &Path, side: usize) -> Result<Picture> {
    check_side(side)?;
    let square = square(path, side)?;
    let mut pixels = vec![0; 3 * side * side];
    for (at, pixel) in square.pixels().enumerate() {
        for (channel, &value) in pixel.0.iter().enumerate() {
            pixels[channel * side * side + at] = value;
        }
    }
    Ok(Picture { shape: [3, side, side], pixels })
}

/// Reads a picture file as torchvision's `Resize(scaling.resize)` and `CenterCrop(scaling.size)` make it of a PIL picture, after it was
/// turned upright as its EXIF data says. Grey, 16 bits and transparent parts are treated as by [`read`]. The picture's shape is
/// `[3, size, size]`.
///
/// # Errors
/// As [`read`]'s about the file, and [`Scaling::check`]'s.
pub fn read_scaled(path: &Path, scaling: &Scaling) -> Result<Picture> {
    scaling.check()?;
    let (mut whole, mut square) = (Picture::default(), Picture::default());
    read_whole(path, &mut whole)?;
    scaling.apply(&whole, &mut square);
    Ok(square)
}

/// Reads a picture file as it is, upright, of any size: steps 1 and 3 of the module's text. An ordinary JPEG has the bytes that
/// libjpeg-turbo gives. `into` is written.
///
/// # Errors
/// As [`read`]'s about the file.
pub(crate) fn read_whole(path: &Path, into: &mut Picture) -> Result<()> {
    decode_whole(path, &contents(path)?, into)
}

/// The same of a file's contents; `path` names it in errors.
pub(crate) fn decode_whole(path: &Path, contents: &[u8], into: &mut Picture) -> Result<()> {
    let (decoder, orientation) = opened(path, contents)?;
    let mut picture = match jpeg::decode(contents) {
        Some((width, height, pixels)) if orientation == Orientation::NoTransforms => {
            *into = Picture { shape: [3, height, width], pixels };
            return Ok(());
        }
        Some(decoded) => DynamicImage::ImageRgb8(interleaved(decoded)),
        None => DynamicImage::from_decoder(decoder).map_err(|error| unreadable(path, error))?,
    };
    picture.apply_orientation(orientation);
    let picture = opaque(picture);
    let (width, height) = picture.dimensions();
    let (height, width) = (height as usize, width as usize);
    if height * width == 0 {
        return Err(unreadable(path, "it has no pixels"));
    }
    into.shape = [3, height, width];
    into.pixels.resize(3 * height * width, 0);
    let (red, rest) = into.pixels.split_at_mut(height * width);
    let (green, blue) = rest.split_at_mut(height * width);
    let planes = red.iter_mut().zip(green).zip(blue);
    for (((red, green), blue), pixel) in planes.zip(picture.as_raw().as_chunks::<3>().0) {
        [*red, *green, *blue] = *pixel;
    }
    Ok(())
}

/// Whether the file's first bytes are those of a picture that can be read.
pub(crate) fn begins_like_a_picture(path: &Path) -> bool {
    let mut begin = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut begin));
    let format = image::guess_format(&begin);
    read.is_ok() && format.is_ok_and(|format| format.reading_enabled())
}

/// Refuses a side that no picture can be scaled to.
pub(crate) fn check_side(side: usize) -> Result<()> {
    if (1..=MAX_SIDE).contains(&side) {
        return Ok(());
    }
    let expected = format!("1 to {MAX_SIDE} pixels");
    Err(Error::Config { field: "side", found: side.to_string(), expected })
}

/// The picture files in a folder and in the folders below it, in the order of their names. Hidden files, linked folders and
/// files whose names don't end like a picture's are left out. A link that leads nowhere is among the files, for the error that
/// names it, where its name ends like a picture's or has no ending: it may have led to a folder of pictures.
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
        } else if is_named_like_a_picture(&path) && !path.is_dir()
            || path.extension().is_none() && leads_nowhere(&path, kind)
        {
            found.push(path);
        }
    }
    Ok(())
}

/// What lies in a folder, without what is hidden.
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

/// Whether a file of this kind is a link whose target is missing or can't be reached.
pub(crate) fn leads_nowhere(path: &Path, kind: fs::FileType) -> bool {
    kind.is_symlink() && fs::metadata(path).is_err()
}

pub(crate) fn is_named_like_a_picture(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

fn unreadable(path: &Path, reason: impl ToString) -> Error {
    Error::Picture { path: path.into(), reason: reason.to_string() }
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.into(), source };
    let about = fs::metadata(path).map_err(|source| match fs::read_link(path) {
        Ok(target) => unreadable(path, format!("it is a link to {}: {source}", target.display())),
        Err(_) => io(source),
    })?;
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

/// The picture upright, its middle scaled to `side` x `side` pixels.
fn square(path: &Path, side: usize) -> Result<RgbImage> {
    let (mut picture, orientation) = decode(path, &contents(path)?)?;
    let (width, height) = (picture.width(), picture.height());
    // Cut first, so that all that follows is done to the square alone; its middle stays the middle.
    let whole = width.min(height);
    picture = picture.crop_imm((width - whole) / 2, (height - whole) / 2, whole, whole);
    picture.apply_orientation(orientation);
    Ok(imageops::resize(&opaque(picture), side as u32, side as u32, FilterType::Triangle))
}

/// The picture in 8 bits a colour, its transparent parts on white.
fn opaque(picture: DynamicImage) -> RgbImage {
    match picture.color().has_alpha() {
        true => on_white(&picture),
        false => picture.into_rgb8(),
    }
}

/// The picture of these planes.
fn interleaved((width, height, planes): (usize, usize, Vec<u8>)) -> RgbImage {
    let size = width * height;
    let pixel = |x: u32, y: u32| {
        let at = y as usize * width + x as usize;
        image::Rgb([planes[at], planes[size + at], planes[2 * size + at]])
    };
    RgbImage::from_fn(width as u32, height as u32, pixel)
}

/// The picture as it lies in the file, and how it has to be turned.
fn decode(path: &Path, bytes: &[u8]) -> Result<(DynamicImage, Orientation)> {
    let (decoder, orientation) = opened(path, bytes)?;
    let picture = DynamicImage::from_decoder(decoder).map_err(|error| unreadable(path, error))?;
    Ok((picture, orientation))
}

/// What decodes the picture of a file, whose kind, length and size have been checked, and how it has to be turned.
fn opened<'a>(path: &Path, bytes: &'a [u8]) -> Result<(impl ImageDecoder + 'a, Orientation)> {
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
        return Err(unreadable(path, "its contents are none of these"));
    }
    if reader.format() == Some(image::ImageFormat::Jpeg) && !jpeg_has_an_end(bytes) {
        return Err(unreadable(path, "the file is cut off"));
    }
    let mut decoder = reader.into_decoder().map_err(refused)?;
    let (width, height) = decoder.dimensions();
    if decoder.total_bytes() > MAX_BYTES {
        let reason = format!(
            "it is {width}x{height}, more than {MAX_BYTES} bytes; scale it down before it is used"
        );
        return Err(unreadable(path, reason));
    }
    let orientation = decoder.orientation().map_err(refused)?;
    Ok((decoder, orientation))
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

/// Whether a JPEG's data has an end. Where it has none, the decoder fills up in grey what is missing, without an error.
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
