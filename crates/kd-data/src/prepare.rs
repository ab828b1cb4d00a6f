//! Pictures decoded and scaled once and written to shards, for training that reads them in many epochs.

use std::io::{Cursor, Write};
use std::path::Path;

use image::{ImageFormat, RgbImage};
use kd_record::hash::sha256;
use kd_record::write::{create_folder, remove_partial, write_whole, write_whole_with};
use kd_record::{Interpolation, lock};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::one_line::shown;
use crate::scaling::{Crop, scaled_sides};
use crate::shards::tar;
use crate::source::{Picture, Source};
use crate::{Error, MAX_SIDE, Result, Sources};

/// How [`prepare`] writes pictures.
#[derive(Clone, Copy, Debug)]
pub struct PrepareConfig {
    /// What the shorter side is scaled to, in pixels; pictures that are no larger stay as they are.
    pub resize: usize,
    /// How it is scaled.
    pub interpolation: Interpolation,
    /// The number of pictures in a shard; the last has what is left.
    pub shard_pictures: usize,
}

/// What [`prepare`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The pictures to train on and those to test on.
    pub pictures: [usize; 2],
    /// The shards of both.
    pub shards: usize,
    /// How many of the shards were there already.
    pub found: usize,
}

/// What lies in the folder of prepared shards.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// The version of this description: 2, since shards keep the pictures' names.
    format: u32,
    /// SHA-256 of the data set that the pictures are of.
    data: String,
    /// What tells the pictures to train on and those to test on from others: another split of the same data has others.
    identities: [String; 2],
    /// The numbers of the pictures to train on and of those to test on.
    pictures: [usize; 2],
    resize: usize,
    interpolation: Interpolation,
    shard_pictures: usize,
    /// The shards that are written, in their order.
    shards: Vec<Written>,
}

/// A shard that is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    name: String,
    sha256: String,
}

/// The file with the [`Manifest`].
const MANIFEST: &str = "prepared.json";
/// Pictures that are decoded at a time.
const AT_A_TIME: usize = 64;

/// Writes the pictures of `sources`, whole and upright, to shards in `out`: `train-000000.tar` and so on, `test-000000.tar` and so on, and
/// `classes.txt`. Each is decoded, brought to `resize` pixels on its shorter side where it is larger, and written without loss, as a BMP file, with its
/// class's number, where it has a class, and keeps its name. Training on them with the same `resize` and interpolation sees the same pixels as on the pictures themselves, unless random
/// parts are cut out of them ([`ResizedCrop`](crate::ResizedCrop)) or a larger size is asked for: those are scaled from the smaller pictures.
///
/// `progress` is told the number of pictures that are done, and of all. Where shards are there that were written of the same data in
/// the same way, they are read and compared with what was written, and the work goes on behind them.
///
/// # Errors
/// When a picture can't be read, something else lies in `out`, a shard there is no longer what was written, another process works
/// there, or the folder can't be written.
pub fn prepare(
    sources: &Sources,
    config: &PrepareConfig,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Prepared> {
    let PrepareConfig { resize, interpolation, shard_pictures } = *config;
    if !(1..=MAX_SIDE).contains(&resize) {
        let expected = format!("1 to {MAX_SIDE} pixels");
        return Err(Error::Config { field: "resize", found: resize.to_string(), expected });
    }
    if shard_pictures == 0 {
        let expected = "at least 1".into();
        return Err(Error::Config { field: "shard_pictures", found: "0".into(), expected });
    }
    let mut manifest = Manifest {
        format: 2,
        data: sources.sha256.clone(),
        identities: [sources.train.identity(), sources.test.identity()],
        pictures: [sources.train.len(), sources.test.len()],
        resize,
        interpolation,
        shard_pictures,
        shards: Vec::new(),
    };
    create_folder(out)?;
    // Before the lock, which is a file, is put into a folder of something else.
    found(out, &manifest)?;
    let _lock = lock::try_lock(out)?;
    remove_partial(out)?;
    let written = found(out, &manifest)?;
    if written.is_empty() {
        // Before anything else, so that a folder where the work was broken off is known as one of these pictures.
        write_manifest(out, &manifest)?;
    }
    let total = sources.train.len() + sources.test.len();
    let (mut done, mut known) = (0, 0);
    if !sources.classes.is_empty() {
        write_whole(&out.join("classes.txt"), (sources.classes.join("\n") + "\n").as_bytes())?;
    }
    for (which, source) in [("train", &sources.train), ("test", &sources.test)] {
        for (number, first) in (0..source.len()).step_by(shard_pictures).enumerate() {
            let name = format!("{which}-{number:06}.tar");
            let path = out.join(&name);
            let pictures = first as u32..source.len().min(first + shard_pictures) as u32;
            done += pictures.len();
            if manifest.shards.len() < written.len() {
                let old = written[manifest.shards.len()].clone();
                if old.name != name || !path.is_file() || sha256(&path)? != old.sha256 {
                    return Err(Error::Folder {
                        path,
                        found: "another shard than the one that was written here, or none".into(),
                        expected: "the shards as they were written: remove the folder, and prepare the pictures again".into(),
                    });
                }
                manifest.shards.push(old);
                known += 1;
            } else {
                write(&**source, pictures, config, &path)?;
                manifest.shards.push(Written { name, sha256: sha256(&path)? });
                write_manifest(out, &manifest)?;
            }
            progress(done, total);
        }
    }
    write_manifest(out, &manifest)?;
    Ok(Prepared { pictures: manifest.pictures, shards: manifest.shards.len(), found: known })
}

fn write_manifest(out: &Path, manifest: &Manifest) -> Result<()> {
    let json = serde_json::to_vec_pretty(manifest).map_err(|error| Error::Folder {
        path: out.join(MANIFEST),
        found: error.to_string(),
        expected: "a description that can be written".into(),
    })?;
    Ok(write_whole(&out.join(MANIFEST), &json)?)
}

/// Whether this is what a process that was killed left of writing the first manifest.
fn is_half_a_manifest(name: &str) -> bool {
    let middle = name.strip_prefix(MANIFEST).and_then(|rest| rest.strip_suffix(".partial"));
    let process = middle.and_then(|middle| middle.strip_prefix('.'));
    process.is_some_and(|process| process.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The shards that are in the folder already.
fn found(out: &Path, asked: &Manifest) -> Result<Vec<Written>> {
    let path = out.join(MANIFEST);
    let io = |source| Error::Io { path: out.into(), source };
    if !path.is_file() {
        let mut others = std::fs::read_dir(out).map_err(io)?.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let is_ours = is_half_a_manifest(&name.to_string_lossy());
            (!is_ours && !name.as_encoded_bytes().starts_with(b".")).then_some(name)
        });
        return match others.next() {
            None => Ok(Vec::new()),
            Some(name) => Err(Error::Folder {
                path: out.into(),
                found: format!("{} in it", shown(Path::new(&name))),
                expected: "an empty folder, or one that pictures were prepared in: give another"
                    .into(),
            }),
        };
    }
    let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let wrong = |found: String| Error::Folder {
        path: path.clone(),
        found,
        expected: "what is asked for now: give another folder, or remove this one".into(),
    };
    let there: Manifest = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("no description ({error})")))?;
    let same = Manifest { shards: Vec::new(), ..there };
    match same == *asked {
        true => Ok(there.shards),
        false => Err(wrong(format!(
            "pictures of data {}, {} of them to train on and {} to test on, scaled to {} pixels ({}), {} to a shard{}",
            same.data,
            same.pictures[0],
            same.pictures[1],
            same.resize,
            same.interpolation,
            same.shard_pictures,
            match same.pictures == asked.pictures && same.identities != asked.identities {
                true => ", of another split or size",
                false => "",
            }
        ))),
    }
}

/// Writes one shard.
fn write(
    source: &dyn Source,
    pictures: std::ops::Range<u32>,
    config: &PrepareConfig,
    path: &Path,
) -> Result<()> {
    let mut failed = None;
    let written = write_whole_with(path, |file| {
        let mut file = std::io::BufWriter::new(file);
        let numbers: Vec<u32> = pictures.collect();
        for numbers in numbers.chunks(AT_A_TIME) {
            let files = numbers.par_iter().map(|number| whole(source, *number, config));
            for (number, prepared) in numbers.iter().zip(files.collect::<Vec<_>>()) {
                match prepared {
                    Ok((bytes, label)) => {
                        let name = source.name(*number);
                        let own = format!("{number:010}.bmp");
                        tar::append(&mut file, &own, &bytes, name.as_deref())?;
                        if let Some(label) = label {
                            let label = label.to_string();
                            let own = format!("{number:010}.cls");
                            tar::append(&mut file, &own, label.as_bytes(), None)?;
                        }
                    }
                    Err(error) => {
                        failed = Some(error);
                        return Err(std::io::ErrorKind::InvalidData.into());
                    }
                }
            }
        }
        tar::end(&mut file)?;
        file.flush()
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

/// A picture as a BMP file, and its class, where it has one.
fn whole(
    source: &dyn Source,
    number: u32,
    config: &PrepareConfig,
) -> Result<(Vec<u8>, Option<u32>)> {
    let label = source.label(number);
    let (mut picture, mut scaled) = (Picture::default(), Picture::default());
    source.read_whole(number, &mut picture)?;
    let [_, height, width] = picture.shape;
    if height.min(width) > config.resize {
        let crop = Crop { top: 0, left: 0, height: height as u32, width: width as u32 };
        let to = scaled_sides(config.resize, height, width);
        crop.scale(&picture, to, config.interpolation, &mut scaled);
        std::mem::swap(&mut picture, &mut scaled);
    }
    let [_, height, width] = picture.shape;
    let size = height * width;
    let colour = |x: u32, y: u32| {
        let at = y as usize * width + x as usize;
        image::Rgb([0, 1, 2].map(|channel| picture.pixels[channel * size + at]))
    };
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_fn(width as u32, height as u32, colour)
        .write_to(&mut bytes, ImageFormat::Bmp)
        .map_err(|error| Error::Source {
        index: number,
        found: format!("a picture of {width}x{height} that can't be written: {error}"),
        expected: "one that fits into a BMP file".into(),
    })?;
    Ok((bytes.into_inner(), label))
}
