//! The scans of a JPEG: coefficients, block by block (ITU-T T.81, annexes F and G).

use super::bits::{Bits, Huffman};
use super::{Component, Frame, Tables};

/// What a scan's header says.
pub(super) struct Scan {
    /// For each of its components: its number, its DC table and its AC table.
    pub(super) components: Vec<(usize, usize, usize)>,
    /// The first and the last coefficient.
    pub(super) band: [usize; 2],
    /// The bit above the lowest one that is known before, and the lowest that is known behind it.
    pub(super) bits: [u32; 2],
}

/// The places of the coefficients in the order that they are coded in.
const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

pub(super) fn unzigzagged<T: Copy + Default>(values: &[T; 64]) -> [T; 64] {
    let mut out = [T::default(); 64];
    ZIGZAG.iter().zip(values).for_each(|(place, value)| out[*place] = *value);
    out
}

/// Reads a scan into the coefficients of the frame's components; gives the place behind it, or `None` where it is broken.
pub(super) fn read(
    frame: &mut Frame,
    tables: &Tables,
    scan: &Scan,
    bytes: &[u8],
    at: usize,
) -> Option<usize> {
    let mut bits = Bits::new(bytes, at);
    let alone = scan.components.len() == 1;
    let [columns, rows] = match &scan.components[..] {
        [(only, ..)] => frame.components[*only].own_blocks,
        _ => frame.units,
    };
    let (mut last, mut skip) = ([0; 4], 0);
    let mut left = tables.restart;
    for unit in 0..columns * rows {
        if tables.restart > 0 && left == 0 {
            bits.restart()?;
            (last, skip, left) = ([0; 4], 0, tables.restart);
        }
        left = left.wrapping_sub(1);
        let (row, column) = (unit / columns, unit % columns);
        for (number, dc, ac) in &scan.components {
            let component = &mut frame.components[*number];
            let [wide, high] = if alone { [1, 1] } else { component.factors };
            for inner in 0..wide * high {
                let place = (row * high + inner / wide) * component.blocks[0]
                    + column * wide
                    + inner % wide;
                let block = component.coefficients.get_mut(place)?;
                let tables = (tables.dc[*dc].as_ref(), tables.ac[*ac].as_ref());
                match frame.progressive {
                    false => sequential(&mut bits, tables, &mut last[*number], block)?,
                    true => progressive(
                        &mut bits,
                        tables,
                        scan,
                        (&mut last[*number], &mut skip),
                        block,
                    )?,
                }
            }
        }
    }
    (!bits.ran_out()).then(|| bits.end())
}

type Pair<'a> = (Option<&'a Huffman>, Option<&'a Huffman>);

/// A block that is coded at once.
fn sequential(
    bits: &mut Bits<'_>,
    (dc, ac): Pair<'_>,
    last: &mut i32,
    block: &mut [i16; 64],
) -> Option<()> {
    let (dc, ac) = (dc?, ac?);
    let length = u32::from(bits.code(dc)?).min(16);
    *last = last.wrapping_add(bits.signed(length));
    block[0] = *last as i16;
    let mut at = 1;
    while at < 64 {
        let code = bits.code(ac)?;
        let (run, length) = (usize::from(code >> 4), u32::from(code & 15));
        if length == 0 {
            if run < 15 {
                break;
            }
            at += 16;
            continue;
        }
        at += run;
        block[*ZIGZAG.get(at)?] = bits.signed(length) as i16;
        at += 1;
    }
    Some(())
}

/// A block's share of a scan of some bits of some coefficients.
fn progressive(
    bits: &mut Bits<'_>,
    (dc, ac): Pair<'_>,
    scan: &Scan,
    (last, skip): (&mut i32, &mut u32),
    block: &mut [i16; 64],
) -> Option<()> {
    let ([first, end], [before, low]) = (scan.band, scan.bits);
    if first == 0 {
        if before == 0 {
            let length = u32::from(bits.code(dc?)?).min(16);
            *last = last.wrapping_add(bits.signed(length));
            block[0] = (*last << low) as i16;
        } else if bits.take(1) == 1 {
            block[0] |= 1 << low;
        }
        return Some(());
    }
    let ac = ac?;
    if before == 0 {
        if *skip > 0 {
            *skip -= 1;
            return Some(());
        }
        let mut at = first;
        while at <= end {
            let code = bits.code(ac)?;
            let (run, length) = (u32::from(code >> 4), u32::from(code & 15));
            match (run, length) {
                (15, 0) => at += 16,
                (_, 0) => {
                    *skip = (1 << run) - 1 + bits.take(run) as u32;
                    break;
                }
                _ => {
                    at += run as usize;
                    block[*ZIGZAG.get(at)?] = (bits.signed(length) << low) as i16;
                    at += 1;
                }
            }
        }
        return Some(());
    }
    refine(bits, ac, scan, skip, block)
}

/// One more bit of the coefficients of a band.
fn refine(
    bits: &mut Bits<'_>,
    ac: &Huffman,
    scan: &Scan,
    skip: &mut u32,
    block: &mut [i16; 64],
) -> Option<()> {
    let ([first, end], low) = (scan.band, scan.bits[1]);
    let one = 1i16 << low;
    let mut at = first;
    // A coefficient that is known gets its next bit.
    let sharpen = |bits: &mut Bits<'_>, value: &mut i16| {
        if bits.take(1) == 1 && *value & one == 0 {
            *value = value.wrapping_add(if *value > 0 { one } else { -one });
        }
    };
    if *skip == 0 {
        while at <= end {
            let code = bits.code(ac)?;
            let (mut run, length) = (u32::from(code >> 4), code & 15);
            let mut new = 0;
            match length {
                0 if run < 15 => {
                    *skip = (1 << run) + bits.take(run) as u32;
                    break;
                }
                0 => {}
                _ => new = if bits.take(1) == 1 { one } else { -one },
            }
            while at <= end {
                let value = &mut block[ZIGZAG[at]];
                if *value != 0 {
                    sharpen(bits, value);
                } else if run == 0 {
                    *value = new;
                    at += 1;
                    break;
                } else {
                    run -= 1;
                }
                at += 1;
            }
        }
    }
    if *skip > 0 {
        for place in &ZIGZAG[at.min(64)..=end] {
            if block[*place] != 0 {
                sharpen(bits, &mut block[*place]);
            }
        }
        *skip -= 1;
    }
    Some(())
}

/// The blocks that a component has in memory.
pub(super) fn blocks(component: &Component) -> usize {
    component.blocks[0] * component.blocks[1]
}
