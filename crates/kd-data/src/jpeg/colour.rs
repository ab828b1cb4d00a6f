//! From the planes of a JPEG to colours: chroma of half the size enlarged as libjpeg's "fancy upsampling" does it (jdsample.c), then
//! `ycc_rgb_convert` (jdcolor.c).

/// A component's pixels.
pub(super) struct Plane {
    pub(super) pixels: Vec<u8>,
    /// The length of its lines in memory.
    pub(super) stride: usize,
    /// Its own width and height, without what fills up the last blocks.
    pub(super) width: usize,
    pub(super) height: usize,
    /// How many times as wide and as high the picture is: 1 or 2 each.
    pub(super) times: [usize; 2],
}

impl Plane {
    fn line(&self, y: usize) -> &[u8] {
        &self.pixels[y.min(self.height - 1) * self.stride..][..self.width]
    }

    /// Line `y` of the picture, at least as long as the picture is wide: enlarged by weights of 3/4 for the nearer pixel and 1/4 for the
    /// further one, both ways.
    #[inline(always)]
    fn enlarged(&self, y: usize, sums: &mut Vec<u16>, out: &mut Vec<u8>) {
        let [wide, high] = self.times;
        let near = self.line(y / high);
        out.clear();
        if high == 1 && wide == 1 {
            return out.extend_from_slice(near);
        }
        // So narrow a component libjpeg only repeats.
        if wide == 2 && near.len() <= 2 {
            return out.extend(near.iter().flat_map(|value| [*value; 2]));
        }
        // The line above for even lines, that below for odd ones; at the edges the line itself.
        let far = match y % 2 {
            0 => self.line((y / high).saturating_sub(1)),
            _ => self.line(y / high + 1),
        };
        let sum = |(near, far): (&u8, &u8)| 3 * u16::from(*near) + u16::from(*far);
        if wide == 1 {
            let bias = 1 + (y % 2) as u16;
            return out.extend(near.iter().zip(far).map(|pair| ((sum(pair) + bias) >> 2) as u8));
        }
        sums.clear();
        match high {
            1 => {
                sums.extend(near.iter().map(|near| u16::from(*near)));
                beside::<2, 1, 2>(sums, out);
            }
            _ => {
                sums.extend(near.iter().zip(far).map(sum));
                beside::<4, 8, 7>(sums, out);
            }
        }
    }
}

/// Two pixels for each of at least three sums: with `LEFT` and `RIGHT` added, and of `SHIFT` bits less.
#[inline(always)]
fn beside<const SHIFT: usize, const LEFT: u16, const RIGHT: u16>(sums: &[u16], out: &mut Vec<u8>) {
    out.resize(2 * sums.len(), 0);
    let (pairs, _) = out.as_chunks_mut::<2>();
    let pixel = |near: u16, far: u16, bias: u16| ((3 * near + far + bias) >> SHIFT) as u8;
    let (&[first, second, ..], &[.., before, last]) = (sums, sums) else { return };
    pairs[0] = [pixel(first, first, LEFT), pixel(first, second, RIGHT)];
    for (out, sums) in pairs[1..].iter_mut().zip(sums.windows(3)) {
        *out = [pixel(sums[1], sums[0], LEFT), pixel(sums[1], sums[2], RIGHT)];
    }
    pairs[sums.len() - 1] = [pixel(last, before, LEFT), pixel(last, last, RIGHT)];
}

/// The picture's pixels, all of red, then green, then blue, of one plane or three.
#[inline(always)]
fn converted(planes: &[Plane], width: usize, height: usize) -> Vec<u8> {
    let mut out = vec![0; 3 * width * height];
    let (reds, rest) = out.split_at_mut(width * height);
    let (greens, blues) = rest.split_at_mut(width * height);
    let mut sums = Vec::new();
    let mut lines = [Vec::new(), Vec::new(), Vec::new()];
    let outs = reds.chunks_exact_mut(width).zip(greens.chunks_exact_mut(width));
    for (y, ((reds, greens), blues)) in outs.zip(blues.chunks_exact_mut(width)).enumerate() {
        for (plane, line) in planes.iter().zip(&mut lines) {
            plane.enlarged(y, &mut sums, line);
        }
        let [luma, blue, red] = &lines;
        if planes.len() == 1 {
            [reds, greens, blues].into_iter().for_each(|out| out.copy_from_slice(&luma[..width]));
            continue;
        }
        const HALF: i32 = 1 << 15;
        let (luma, blue, red) = (&luma[..width], &blue[..width], &red[..width]);
        let byte = |luma: u8, change: i32| (i32::from(luma) + (change >> 16)).clamp(0, 255) as u8;
        let chroma = |value: u8| i32::from(value) - 128;
        // 1.402, 0.34414, 0.71414 and 1.772 times 65536.
        for ((out, luma), red) in reds.iter_mut().zip(luma).zip(red) {
            *out = byte(*luma, 91881 * chroma(*red) + HALF);
        }
        for (((out, luma), blue), red) in greens.iter_mut().zip(luma).zip(blue).zip(red) {
            *out = byte(*luma, -22554 * chroma(*blue) + HALF - 46802 * chroma(*red));
        }
        for ((out, luma), blue) in blues.iter_mut().zip(luma).zip(blue) {
            *out = byte(*luma, 116130 * chroma(*blue) + HALF);
        }
    }
    out
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn converted_avx2(planes: &[Plane], width: usize, height: usize) -> Vec<u8> {
    converted(planes, width, height)
}

/// The picture's pixels, all of red, then green, then blue, of one plane or three.
pub(super) fn rgb(planes: &[Plane], width: usize, height: usize) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { converted_avx2(planes, width, height) };
    }
    converted(planes, width, height)
}
