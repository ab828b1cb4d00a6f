//! Pictures sheared, moved and turned, each new pixel the nearest old one, as Pillow does it (`affine_fixed` and `ImagingScaleAffine` of
//! `src/libImaging/Geometry.c`), and so torchvision's `affine` and `rotate` of PIL pictures. Where there is no old pixel, the new is black.

use crate::source::Picture;

/// Which old pixel a new one is: the one in which the point (a x + b y + c, d x + e y + f) of its middle (x, y) lies, in pixels from the
/// upper left corner.
type Matrix = [f64; 6];

/// Makes each row longer by `share` of its distance from the upper edge: `shear=[degrees(atan(share)), 0]` with centre (0, 0).
pub(crate) fn shear_x(picture: &mut Picture, share: f64) {
    transform(picture, [1.0, share, 0.0, 0.0, 1.0, 0.0]);
}

/// The same for columns and the left edge.
pub(crate) fn shear_y(picture: &mut Picture, share: f64) {
    transform(picture, [1.0, 0.0, 0.0, share, 1.0, 0.0]);
}

/// Moves the picture by whole pixels: right and down where they are above 0.
pub(crate) fn translate(picture: &mut Picture, right: i32, down: i32) {
    transform(picture, [1.0, 0.0, -f64::from(right), 0.0, 1.0, -f64::from(down)]);
}

/// Turns the picture counter-clockwise around its middle: `Image.rotate`.
pub(crate) fn rotate(picture: &mut Picture, degrees: f64) {
    let [_, height, width] = picture.shape;
    let turn = degrees.rem_euclid(360.0);
    if turn == 0.0 {
        return;
    }
    // Pillow turns by right angles where the shape stays by moving pixels, which arithmetic would miss by one.
    if (turn == 90.0 || turn == 270.0) && height == width {
        let old = picture.pixels.clone();
        let planes = picture.pixels.chunks_exact_mut((width * width).max(1));
        for (to, from) in planes.zip(old.chunks_exact((width * width).max(1))) {
            for (at, to) in to.iter_mut().enumerate() {
                let (y, x) = (at / width, at % width);
                *to = match turn == 90.0 {
                    true => from[x * width + width - 1 - y],
                    false => from[(width - 1 - x) * width + y],
                };
            }
        }
        return;
    }
    // Rounded as Pillow does it, so that the last bits of a cosine, which differ between machines, do not count.
    let round = |value: f64| (value * 1e15).round() / 1e15;
    let angle = -turn.to_radians();
    let (cos, sin) = (round(angle.cos()), round(angle.sin()));
    let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
    transform(picture, [cos, sin, -x * cos - y * sin + x, -sin, cos, x * sin - y * cos + y]);
}

/// Makes the picture anew of its pixels, in fixed-point numbers of 16 bits behind the point.
fn transform(picture: &mut Picture, [a, b, c, d, e, f]: Matrix) {
    let [_, height, width] = picture.shape;
    let fixed = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let [right, down] = [[a, b], [d, e]].map(|row| row.map(fixed));
    let first = [c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5].map(fixed);
    let old = picture.pixels.clone();
    let size = (height * width).max(1);
    for (to, from) in picture.pixels.chunks_exact_mut(size).zip(old.chunks_exact(size)) {
        for (y, row) in to.chunks_exact_mut(width).enumerate() {
            for (x, to) in row.iter_mut().enumerate() {
                let place = |first: i64, [along, across]: [i64; 2]| {
                    (first + x as i64 * along + y as i64 * across) >> 16
                };
                let (old_x, old_y) = (place(first[0], right), place(first[1], down));
                let inside = |place: i64, side: usize| (0..side as i64).contains(&place);
                *to = match inside(old_x, width) && inside(old_y, height) {
                    true => from[old_y as usize * width + old_x as usize],
                    false => 0,
                };
            }
        }
    }
}
