//! Colours of a picture changed as Pillow's `ImageEnhance` and `ImageOps` do it, and so torchvision's transforms of PIL pictures: to the byte.
//!
//! Pictures are `[3, H, W]`.

use crate::source::Picture;

/// `Image.blend` of Pillow (`src/libImaging/Blend.c`): from `zero` at 0 to `value` at 1, and beyond.
fn blend(zero: u8, value: u8, amount: f32) -> u8 {
    // Towards zero, and to the ends of a byte.
    (f32::from(zero) + amount * (f32::from(value) - f32::from(zero))) as u8
}

/// Grey of the colours as `convert("L")` has it (`src/libImaging/Convert.c`).
fn grey([red, green, blue]: [u8; 3]) -> u8 {
    let [red, green, blue] = [red, green, blue].map(u32::from);
    ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) as u8
}

/// Changes each pixel.
fn each_pixel(picture: &mut Picture, mut change: impl FnMut([u8; 3]) -> [u8; 3]) {
    let size = picture.pixels.len() / 3;
    let (red, rest) = picture.pixels.split_at_mut(size);
    let (green, blue) = rest.split_at_mut(size);
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        [*red, *green, *blue] = change([*red, *green, *blue]);
    }
}

/// Replaces each value of each channel by what `of` says of it.
fn by_table(picture: &mut Picture, of: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| of(value as u8));
    picture.pixels.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

/// `ImageEnhance.Brightness`: every value times `factor`.
pub(crate) fn brightness(picture: &mut Picture, factor: f64) {
    by_table(picture, |value| blend(0, value, factor as f32));
}

/// `ImageEnhance.Contrast`: the distance from the mean grey times `factor`.
pub(crate) fn contrast(picture: &mut Picture, factor: f64) {
    let mut sum = 0u64;
    each_pixel(picture, |pixel| {
        sum += u64::from(grey(pixel));
        pixel
    });
    let mean = (sum as f64 / (picture.pixels.len() / 3).max(1) as f64 + 0.5) as u8;
    by_table(picture, |value| blend(mean, value, factor as f32));
}

/// `ImageEnhance.Color`: the distance of each pixel from its grey times `factor`.
pub(crate) fn saturation(picture: &mut Picture, factor: f64) {
    each_pixel(picture, |pixel| {
        let grey = grey(pixel);
        pixel.map(|value| blend(grey, value, factor as f32))
    });
}

/// `ImageEnhance.Sharpness`: the distance from the picture smoothed by 3 x 3 pixels (`ImageFilter.SMOOTH`) times `factor`. The outermost
/// pixels stay as they are.
pub(crate) fn sharpness(picture: &mut Picture, factor: f64) {
    let [_, height, width] = picture.shape;
    if height < 3 || width < 3 {
        return;
    }
    for plane in picture.pixels.chunks_exact_mut(height * width) {
        let old = plane.to_vec();
        for y in 1..height - 1 {
            for x in 1..width - 1 {
                let row = |y: usize| -> u32 {
                    old[y * width + x - 1..][..3].iter().map(|value| u32::from(*value)).sum()
                };
                let value = old[y * width + x];
                // The eight around it once, itself five times, of 13 in all; to the nearest whole number.
                let sum = row(y - 1) + row(y) + row(y + 1) + 4 * u32::from(value);
                let smooth = ((2 * sum + 13) / 26) as u8;
                plane[y * width + x] = blend(smooth, value, factor as f32);
            }
        }
    }
}

/// `adjust_hue` of torchvision: the hue byte of Pillow's HSV, turned by a share of the circle.
pub(crate) fn hue(picture: &mut Picture, share: f64) {
    // `np.int32(hue_factor * 255).astype(np.uint8)`, which wraps around.
    let turn = (share * 255.0) as i32 as u8;
    each_pixel(picture, |pixel| {
        let [hue, saturation, value] = to_hsv(pixel);
        from_hsv([hue.wrapping_add(turn), saturation, value])
    });
}

/// `rgb2hsv_row` of `src/libImaging/Convert.c`.
fn to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let [r, g, b] = [red, green, blue].map(|value| f32::from(most - value) / range);
    let hue = if red == most {
        b - g
    } else if green == most {
        // A constant of C is of double precision, and its sum is cut to single.
        (2.0 + f64::from(r) - f64::from(b)) as f32
    } else {
        (4.0 + f64::from(g) - f64::from(r)) as f32
    };
    let hue = ((f64::from(hue) / 6.0 + 1.0) % 1.0) as f32;
    let saturation = range / f32::from(most);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, most]
}

/// `hsv2rgb` of the same file.
fn from_hsv([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sixth = f64::from(hue) * 6.0 / 255.0;
    let which = sixth.floor();
    let rest = f64::from((sixth - which) as f32);
    let (light, colour) = (f64::from(value), f64::from((f64::from(saturation) / 255.0) as f32));
    let byte = |value: f64| value.round() as u8;
    let p = byte(light * (1.0 - colour));
    let q = byte(light * (1.0 - colour * rest));
    let t = byte(light * (1.0 - colour * (1.0 - rest)));
    match which as u8 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}

/// `ImageOps.posterize`: each value keeps its upper `bits` bits, at most 8.
pub(crate) fn posterize(picture: &mut Picture, bits: u32) {
    let mask = (0xffu16 << 8u32.saturating_sub(bits)) as u8;
    by_table(picture, |value| value & mask);
}

/// `ImageOps.solarize`: values from `threshold` on are turned around.
pub(crate) fn solarize(picture: &mut Picture, threshold: f64) {
    by_table(picture, |value| if f64::from(value) < threshold { value } else { 255 - value });
}

/// How many pixels of a plane have each value.
fn histogram(plane: &[u8]) -> [u32; 256] {
    let mut counts = [0; 256];
    plane.iter().for_each(|value| counts[usize::from(*value)] += 1);
    counts
}

/// Replaces the values of each plane by the table that `of` makes of the plane's histogram, where it makes one.
fn by_histogram(picture: &mut Picture, of: impl Fn(&[u32; 256]) -> Option<[u8; 256]>) {
    let [_, height, width] = picture.shape;
    for plane in picture.pixels.chunks_exact_mut((height * width).max(1)) {
        if let Some(table) = of(&histogram(plane)) {
            plane.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
        }
    }
}

/// `ImageOps.autocontrast`: the least and the largest value of each channel become 0 and 255.
pub(crate) fn autocontrast(picture: &mut Picture) {
    by_histogram(picture, |counts| {
        let least = counts.iter().position(|count| *count > 0)?;
        let most = counts.iter().rposition(|count| *count > 0)?;
        if most <= least {
            return None;
        }
        let scale = 255.0 / (most - least) as f64;
        let offset = -(least as f64) * scale;
        Some(std::array::from_fn(|value| (value as f64 * scale + offset) as u8))
    });
}

/// `ImageOps.equalize`: each channel's values are spread so that all are about equally frequent.
pub(crate) fn equalize(picture: &mut Picture) {
    by_histogram(picture, |counts| {
        let last = counts.iter().rfind(|count| **count > 0)?;
        let step = (counts.iter().sum::<u32>() - last) / 255;
        if step == 0 {
            return None;
        }
        let mut sum = step / 2;
        Some(std::array::from_fn(|value| {
            let new = (sum / step).min(255) as u8;
            sum += counts[value];
            new
        }))
    });
}
