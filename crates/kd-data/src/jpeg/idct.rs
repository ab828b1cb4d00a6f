//! The inverse discrete cosine transform of libjpeg's `jpeg_idct_islow` (jidctint.c), whose rounding libjpeg-turbo keeps on every
//! processor: Loeffler, Ligtenberg and Moschytz, "Practical Fast 1-D DCT Algorithms with 11 Multiplications", 1989.

use std::num::Wrapping;

const BITS: usize = 13;
const FIRST_PASS_BITS: usize = 2;

/// Sums wrap around, as no sum of a real picture does.
type Sum = Wrapping<i32>;

/// Eight lines or columns at a time, transformed; each sum is rounded to `shift` bits less.
#[inline(always)]
fn pass(input: [[i32; 8]; 8], shift: usize) -> [[i32; 8]; 8] {
    let mut output = [[0; 8]; 8];
    let times = |value: Sum, factor: i32| value * Wrapping(factor);
    for lane in 0..8 {
        let [i0, i1, i2, i3, i4, i5, i6, i7] = input.map(|line| Wrapping(line[lane]));
        let z1 = times(i2 + i6, 4433);
        let (t2, t3) = (z1 - times(i6, 15137), z1 + times(i2, 6270));
        let (t0, t1) = ((i0 + i4) << BITS, (i0 - i4) << BITS);
        let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];
        let (z1, z2, z3, z4) = (i7 + i1, i5 + i3, i7 + i3, i5 + i1);
        let z5 = times(z3 + z4, 9633);
        let (z1, z2) = (times(z1, -7373), times(z2, -20995));
        let (z3, z4) = (times(z3, -16069) + z5, times(z4, -3196) + z5);
        let odd = [
            times(i1, 12299) + z1 + z4,
            times(i3, 25172) + z2 + z3,
            times(i5, 16819) + z2 + z4,
            times(i7, 2446) + z1 + z3,
        ];
        let half = Wrapping(1 << (shift - 1));
        for at in 0..4 {
            output[at][lane] = ((even[at] + odd[at] + half) >> shift).0;
            output[7 - at][lane] = ((even[at] - odd[at] + half) >> shift).0;
        }
    }
    output
}

#[inline(always)]
fn turned(square: [[i32; 8]; 8]) -> [[i32; 8]; 8] {
    let mut turned = [[0; 8]; 8];
    for (y, line) in square.iter().enumerate() {
        for (x, value) in line.iter().enumerate() {
            turned[x][y] = *value;
        }
    }
    turned
}

#[inline(always)]
fn whole(coefficients: &[i16; 64], quantisation: &[u16; 64], out: &mut [u8], stride: usize) {
    let mut input = [[0; 8]; 8];
    for (at, value) in input.as_flattened_mut().iter_mut().enumerate() {
        *value = i32::from(coefficients[at]) * i32::from(quantisation[at]);
    }
    let columns = pass(input, BITS - FIRST_PASS_BITS);
    let lines = turned(pass(turned(columns), BITS + FIRST_PASS_BITS + 3));
    for (line, out) in lines.iter().zip(out.chunks_mut(stride)) {
        for (value, out) in line.iter().zip(out) {
            *out = (value.saturating_add(128)).clamp(0, 255) as u8;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn whole_avx2(coefficients: &[i16; 64], quantisation: &[u16; 64], out: &mut [u8], stride: usize) {
    whole(coefficients, quantisation, out, stride);
}

/// Writes the block of 8 x 8 pixels that these coefficients, row by row, stand for to `out`, whose lines are `stride` apart.
pub(super) fn block(
    coefficients: &[i16; 64],
    quantisation: &[u16; 64],
    out: &mut [u8],
    stride: usize,
) {
    if coefficients[1..].iter().all(|value| *value == 0) {
        let sum = i32::from(coefficients[0]) * i32::from(quantisation[0]);
        let value = (((sum + 4) >> 3) + 128).clamp(0, 255) as u8;
        return out.chunks_mut(stride).take(8).for_each(|line| line[..8].fill(value));
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { whole_avx2(coefficients, quantisation, out, stride) };
    }
    whole(coefficients, quantisation, out, stride);
}
