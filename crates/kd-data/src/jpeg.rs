//! JPEG files decoded to the very bytes that libjpeg-turbo gives, and so Pillow, with which most networks were trained: its inverse
//! transform, its "fancy" enlarging of chroma, its colours. Other decoders round otherwise, by up to six grey levels.
//!
//! Ordinary files are read: 8 bits, Huffman codes, sequential or progressive, grey or YCbCr, chroma as large or half as wide or high.
//! For others, broken ones among them, [`decode`] gives `None`, and the crate image decides.

mod bits;
mod colour;
mod idct;
mod scan;

use bits::Huffman;
use colour::Plane;
use scan::Scan;

/// A component of the picture, and its coefficients.
struct Component {
    id: u8,
    /// Blocks in each unit of an interleaved scan, across and down.
    factors: [usize; 2],
    quantisation: usize,
    /// Blocks in memory, across and down.
    blocks: [usize; 2],
    /// Blocks of a scan of this component alone.
    own_blocks: [usize; 2],
    /// Width and height in pixels.
    size: [usize; 2],
    coefficients: Vec<[i16; 64]>,
}

struct Frame {
    width: usize,
    height: usize,
    progressive: bool,
    components: Vec<Component>,
    /// Units of an interleaved scan, across and down.
    units: [usize; 2],
}

#[derive(Default)]
struct Tables {
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    quantisation: [Option<[u16; 64]>; 4],
    /// Units between two restart markers; 0 for none.
    restart: usize,
}

/// Width, height and the pixels of a JPEG file, all of red, then green, then blue; `None` where it is no ordinary one.
pub(crate) fn decode(bytes: &[u8]) -> Option<(usize, usize, Vec<u8>)> {
    let (mut tables, mut frame) = (Tables::default(), None);
    let (mut jfif, mut adobe) = (false, None);
    let mut at = bytes.starts_with(&[0xff, 0xd8]).then_some(2)?;
    loop {
        // Before a marker there may be any number of 0xff.
        while bytes.get(at) == Some(&0xff) && bytes.get(at + 1) == Some(&0xff) {
            at += 1;
        }
        let marker = match bytes.get(at..at + 2)? {
            [0xff, marker] => *marker,
            _ => return None,
        };
        at += 2;
        if marker == 0xd9 {
            break;
        }
        let length = usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let segment = bytes.get(at + 2..at + length)?;
        at += length;
        match marker {
            0xe0 => jfif |= segment.starts_with(b"JFIF\0"),
            0xee if segment.starts_with(b"Adobe") => adobe = segment.get(11).copied(),
            0xdb => read_quantisation(segment, &mut tables)?,
            0xc4 => read_huffman(segment, &mut tables)?,
            0xdd => tables.restart = usize::from(u16::from_be_bytes(*segment.first_chunk()?)),
            0xc0..=0xc2 if frame.is_none() => frame = Some(read_frame(segment, marker == 0xc2)?),
            0xda => {
                let frame = frame.as_mut()?;
                at = scan::read(frame, &tables, &read_scan(segment, frame)?, bytes, at)?;
            }
            // Arithmetic codes, lossless and hierarchical pictures, a height that comes later, and a second picture.
            0xc0..=0xcf | 0xdc | 0xde | 0xdf | 0x01 | 0xd0..=0xd8 => return None,
            _ => {}
        }
    }
    let frame = frame?;
    if let [first, second, third] = &frame.components[..] {
        // As `default_decompress_parms` of libjpeg: these would be red, green and blue.
        let is_rgb = [first.id, second.id, third.id] == *b"RGB";
        if !jfif && (adobe.is_some_and(|transform| transform != 1) || adobe.is_none() && is_rgb) {
            return None;
        }
    }
    let planes = frame.components.iter().map(|component| plane(component, &frame, &tables));
    let planes: Vec<Plane> = planes.collect::<Option<_>>()?;
    let (width, height) = (frame.width, frame.height);
    Some((width, height, colour::rgb(&planes, width, height)))
}

fn read_quantisation(mut segment: &[u8], tables: &mut Tables) -> Option<()> {
    while let Some((head, rest)) = segment.split_first() {
        let wide = head >> 4 > 0;
        let size = if wide { 128 } else { 64 };
        let (values, rest) = rest.split_at_checked(size)?;
        let value = |at: usize| match wide {
            true => u16::from_be_bytes([values[2 * at], values[2 * at + 1]]),
            false => u16::from(values[at]),
        };
        let table = tables.quantisation.get_mut(usize::from(head & 15))?;
        *table = Some(scan::unzigzagged(&std::array::from_fn(value)));
        segment = rest;
    }
    Some(())
}

fn read_huffman(mut segment: &[u8], tables: &mut Tables) -> Option<()> {
    while let Some((head, rest)) = segment.split_first() {
        let (counts, rest) = rest.split_first_chunk::<16>()?;
        let count = counts.iter().map(|count| usize::from(*count)).sum();
        let (values, rest) = rest.split_at_checked(count)?;
        let kind = if head >> 4 == 0 { &mut tables.dc } else { &mut tables.ac };
        *kind.get_mut(usize::from(head & 15))? = Some(Huffman::new(counts, values)?);
        segment = rest;
    }
    Some(())
}

fn read_frame(segment: &[u8], progressive: bool) -> Option<Frame> {
    let (&[bits, h1, h0, w1, w0, count], rest) = segment.split_first_chunk::<6>()?;
    let (height, width) =
        (usize::from(h1) << 8 | usize::from(h0), usize::from(w1) << 8 | usize::from(w0));
    if bits != 8 || width == 0 || height == 0 || !matches!(count, 1 | 3) {
        return None;
    }
    let (described, _) = rest.as_chunks::<3>();
    let factors = |pair: u8| [usize::from(pair >> 4), usize::from(pair & 15)];
    let described = described.get(..usize::from(count))?;
    // A component alone is coded block by block, whatever its factors are.
    let most = match described {
        [_] => [1, 1],
        [luma, rest @ ..] => {
            let most = factors(luma[1]);
            let is_ordinary = most.iter().all(|factor| matches!(factor, 1 | 2));
            if !is_ordinary || rest.iter().any(|chroma| chroma[1] != 0x11) {
                return None;
            }
            most
        }
        [] => return None,
    };
    let units = [width.div_ceil(8 * most[0]), height.div_ceil(8 * most[1])];
    let components = described.iter().map(|[id, pair, quantisation]| {
        let factors = if count == 1 { [1, 1] } else { factors(*pair) };
        let size = [0, 1].map(|way| ([width, height][way] * factors[way]).div_ceil(most[way]));
        let blocks = [0, 1].map(|way| units[way] * factors[way]);
        Component {
            id: *id,
            factors,
            quantisation: usize::from(*quantisation),
            blocks,
            own_blocks: size.map(|side| side.div_ceil(8)),
            size,
            coefficients: vec![[0; 64]; blocks[0] * blocks[1]],
        }
    });
    Some(Frame { width, height, progressive, components: components.collect(), units })
}

fn read_scan(segment: &[u8], frame: &Frame) -> Option<Scan> {
    let (count, rest) = segment.split_first()?;
    let (described, rest) = rest.split_at_checked(2 * usize::from(*count))?;
    let &[first, last, bits] = rest.first_chunk::<3>()?;
    let component = |pair: &[u8; 2]| {
        let number = frame.components.iter().position(|component| component.id == pair[0])?;
        let (dc, ac) = (usize::from(pair[1] >> 4), usize::from(pair[1] & 15));
        (dc < 4 && ac < 4).then_some((number, dc, ac))
    };
    let components =
        described.as_chunks::<2>().0.iter().map(component).collect::<Option<Vec<_>>>()?;
    let band = [usize::from(first), usize::from(last)];
    let bits = [u32::from(bits >> 4), u32::from(bits & 15)];
    let of_frame = components.len() == 1 || components.len() == frame.components.len();
    let good = match frame.progressive {
        false => true,
        true => {
            let one_kind = band[0] > 0 && components.len() == 1 || band == [0, 0];
            one_kind && band[0] <= band[1] && band[1] < 64 && bits[1] < 14
        }
    };
    (of_frame && good).then_some(Scan { components, band, bits })
}

/// A component's pixels.
fn plane(component: &Component, frame: &Frame, tables: &Tables) -> Option<Plane> {
    let quantisation = tables.quantisation.get(component.quantisation)?.as_ref()?;
    let stride = 8 * component.blocks[0];
    let mut pixels = vec![0; 64 * scan::blocks(component)];
    let rows = component.coefficients.chunks_exact(component.blocks[0]);
    for (row, out) in rows.zip(pixels.chunks_exact_mut(8 * stride)) {
        for (at, block) in row.iter().enumerate() {
            idct::block(block, quantisation, &mut out[8 * at..], stride);
        }
    }
    let [width, height] = component.size;
    let times = [0, 1].map(|way| frame.components[0].factors[way] / component.factors[way]);
    Some(Plane { pixels, stride, width, height, times })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn fixtures() -> Vec<PathBuf> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jpegs");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|ending| ending == "jpg")).collect();
        files.sort();
        files
    }

    /// Every byte is that of Pillow with libjpeg-turbo (`parity/make_jpegs.py`).
    #[test]
    fn ordinary_files_are_decoded_as_libjpeg_turbo_does() {
        let files = fixtures();
        assert_eq!(files.len(), 15);
        for path in files {
            let (width, height, found) = decode(&std::fs::read(&path).unwrap()).unwrap();
            let expected = image::open(path.with_extension("png")).unwrap().into_rgb8();
            assert_eq!((width as u32, height as u32), expected.dimensions(), "{path:?}");
            for (at, pixel) in expected.pixels().enumerate() {
                let found = [0, 1, 2].map(|channel| found[channel * width * height + at]);
                assert_eq!(found, pixel.0, "{path:?}: pixel {at}");
            }
        }
    }

    /// Whatever the bytes are, nothing panics, and a file that is cut off is left to the other decoder.
    #[test]
    fn broken_files_are_no_panic() {
        let mut state = 1u64;
        let mut next = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize % below
        };
        for path in fixtures() {
            let whole = std::fs::read(path).unwrap();
            for _ in 0..40 {
                let mut bytes = whole.clone();
                for _ in 0..=next(5) {
                    let at = next(bytes.len());
                    bytes[at] = next(256) as u8;
                }
                decode(&bytes);
                assert!(decode(&whole[..next(whole.len())]).is_none());
            }
        }
    }
}
