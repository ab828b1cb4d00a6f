//! A data set drawn by program: ten classes of 32x32 colour pictures, for machines without CIFAR.
//!
//! A class is a shape (disc, square, triangle, cross, ring) filled with one of two textures
//! (stripes, checks). Place, size, rotation, colours and light are random; clutter lies behind the shape and a
//! stroke across it, and every pixel is noisy. Each class has a favourite colour, which is no more than a hint. One picture
//! in twenty-five shows a random class whatever its label says, so that no network can classify all pictures correctly.
//!
//! Only whole numbers, `+ - * /` and square roots are used, which IEEE 754 defines exactly, and each
//! picture has a random stream of its own: so the bytes are the same on every machine and with any number
//! of threads.

use rand_chacha::{ChaCha8Rng, rand_core::Rng};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::labels;
use crate::random::{Purpose, below, generator, unit};
use crate::{Dataset, Split};
use kd_record::hash::hex;

/// Height and width of a picture in pixels.
const SIDE: usize = 32;

/// How many pictures to draw, and from what seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntheticConfig {
    /// Pictures to train on.
    pub train: usize,
    /// Pictures to test on.
    pub test: usize,
    /// The seed of the pictures: another one gives other pictures of the same kind. With the same seed a larger set begins
    /// with the pictures of a smaller one.
    pub seed: u64,
}

impl Default for SyntheticConfig {
    /// 10,000 and 2,000 pictures.
    fn default() -> Self {
        Self { train: 10_000, test: 2_000, seed: 0 }
    }
}

const SHAPES: [Shape; 5] = [Shape::Disc, Shape::Square, Shape::Triangle, Shape::Cross, Shape::Ring];
const TEXTURES: [Texture; 2] = [Texture::Stripes, Texture::Checks];

#[derive(Clone, Copy)]
enum Shape {
    Disc,
    Square,
    Triangle,
    Cross,
    Ring,
}

#[derive(Clone, Copy)]
enum Texture {
    Stripes,
    Checks,
}

/// Red, green and blue, from 0 to 255; in between they may leave that range.
type Colour = [f32; 3];

/// The classes' favourite colours.
const FAVOURITES: [Colour; 10] = [
    [220.0, 60.0, 50.0],
    [230.0, 140.0, 40.0],
    [220.0, 210.0, 60.0],
    [110.0, 190.0, 60.0],
    [50.0, 160.0, 120.0],
    [60.0, 170.0, 220.0],
    [60.0, 80.0, 210.0],
    [140.0, 70.0, 200.0],
    [210.0, 80.0, 170.0],
    [140.0, 110.0, 90.0],
];

/// Draws the data set, the same for the same settings. 10,000 pictures take about a second on one core.
pub fn synthetic(config: &SyntheticConfig) -> Dataset {
    let train = draw_split(config.train, config.seed, Purpose::SyntheticTrain);
    let test = draw_split(config.test, config.seed, Purpose::SyntheticTest);
    let mut hash = Sha256::new();
    let (of_train, of_test) = (labels::bytes(&train.labels), labels::bytes(&test.labels));
    for bytes in [&train.images, &of_train, &test.images, &of_test] {
        hash.update(bytes);
    }
    Dataset {
        name: "synthetic".into(),
        classes: ["disc", "square", "triangle", "cross", "ring"]
            .iter()
            .flat_map(|shape| [format!("striped {shape}"), format!("checked {shape}")])
            .collect(),
        train,
        test,
        sha256: hex(hash),
        skipped: Vec::new(),
        names: None,
    }
}

fn draw_split(count: usize, seed: u64, purpose: Purpose) -> Split {
    let labels: Vec<u32> = (0..count).map(|i| (i % 10) as u32).collect();
    let mut images = vec![0; count * 3 * SIDE * SIDE];
    images.par_chunks_exact_mut(3 * SIDE * SIDE).enumerate().for_each(|(i, image)| {
        let mut rng = generator(seed, purpose, i as u64);
        draw(labels[i], &mut rng, image);
    });
    Split { images, labels, coarse_labels: None, shape: [3, SIDE, SIDE] }
}

/// Draws one picture of a class into `image`, `[3, 32, 32]`.
fn draw(label: u32, rng: &mut ChaCha8Rng, image: &mut [u8]) {
    let mut canvas = background(rng);
    for _ in 0..2 + below(rng, 3) {
        clutter(rng).paint(&mut canvas);
    }
    let shown = if below(rng, 25) == 0 { below(rng, 10) as usize } else { label as usize };
    figure(shown, rng).paint(&mut canvas);
    Stroke::random(rng).paint(&mut canvas);
    develop(&canvas, rng, image);
}

/// The colours of the pixels, row by row.
type Canvas = [Colour; SIDE * SIDE];

/// Four colours, one in each corner, blended, under a weak grain of squares.
fn background(rng: &mut ChaCha8Rng) -> Canvas {
    let corners: [Colour; 4] = std::array::from_fn(|_| colour(rng));
    let shift = [below(rng, 8), below(rng, 8)];
    let (cell, depth) = (2 + below(rng, 5), between(rng, -25.0, 25.0));
    std::array::from_fn(|i| {
        let (x, y) = (i % SIDE, i / SIDE);
        let (right, down) = (x as f32 / 31.0, y as f32 / 31.0);
        let top = mix(corners[0], corners[1], right);
        let bottom = mix(corners[2], corners[3], right);
        let square = (x as u32 + shift[0]) / cell + (y as u32 + shift[1]) / cell;
        let grain = if square.is_multiple_of(2) { depth } else { -depth };
        mix(top, bottom, down).map(|value| value + grain)
    })
}

/// A shape with a place, a size, a rotation, a texture and colours.
struct Figure {
    shape: Shape,
    texture: Texture,
    centre: [f32; 2],
    radius: f32,
    turn: Turn,
    /// Width of a stripe or check in pixels, its direction and how far it is shifted.
    cell: f32,
    grain: Turn,
    shift: f32,
    colours: [Colour; 2],
}

/// The figure that the label names.
fn figure(class: usize, rng: &mut ChaCha8Rng) -> Figure {
    let main = mix(colour(rng), FAVOURITES[class], between(rng, 0.1, 0.9));
    Figure {
        shape: SHAPES[class / 2],
        texture: TEXTURES[class % 2],
        centre: [between(rng, 12.0, 20.0), between(rng, 12.0, 20.0)],
        radius: between(rng, 9.0, 13.0),
        turn: Turn::tilt(rng),
        cell: between(rng, 2.0, 3.2),
        grain: Turn::random(rng),
        shift: between(rng, 0.0, 4.0),
        colours: [main, contrast(main, rng)],
    }
}

/// A smaller figure of any kind, which says nothing about the label.
fn clutter(rng: &mut ChaCha8Rng) -> Figure {
    let main = colour(rng);
    Figure {
        shape: SHAPES[below(rng, 5) as usize],
        texture: TEXTURES[below(rng, 2) as usize],
        centre: [between(rng, 0.0, 32.0), between(rng, 0.0, 32.0)],
        radius: between(rng, 2.5, 6.0),
        turn: Turn::random(rng),
        cell: between(rng, 2.0, 3.2),
        grain: Turn::random(rng),
        shift: between(rng, 0.0, 4.0),
        colours: [main, contrast(main, rng)],
    }
}

impl Figure {
    fn paint(&self, canvas: &mut Canvas) {
        // No shape covers a point further than 1.14 of its radius from its centre: the square's corners lie at 0.8 * sqrt(2).
        // Elsewhere nothing is painted, and most figures are small.
        let reach = 1.15 * self.radius;
        let [columns, rows] = self.centre.map(|centre| {
            let first = (centre - reach).max(0.0) as usize;
            first..((centre + reach).max(0.0) as usize + 1).min(SIDE)
        });
        for i in rows.flat_map(|row| columns.clone().map(move |column| row * SIDE + column)) {
            let pixel = &mut canvas[i];
            // Four points in each pixel soften the edges.
            let mut count = [0u8; 2];
            for (dx, dy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
                let at = [
                    (i % SIDE) as f32 + dx - self.centre[0],
                    (i / SIDE) as f32 + dy - self.centre[1],
                ];
                let [u, v] = self.turn.apply(at);
                if self.shape.covers(u / self.radius, v / self.radius) {
                    count[usize::from(self.second_colour(at))] += 1;
                }
            }
            let [first, second] = count.map(|count| f32::from(count) * 0.25);
            *pixel = std::array::from_fn(|c| {
                let behind = (1.0 - first - second) * pixel[c];
                behind + first * self.colours[0][c] + second * self.colours[1][c]
            });
        }
    }

    /// Whether the texture shows its second colour at this point, given from the figure's centre.
    fn second_colour(&self, at: [f32; 2]) -> bool {
        let [a, b] = self.grain.apply(at);
        // 64 cells more make the number positive: truncating then rounds down.
        let stripe = |along: f32| (along / self.cell + self.shift + 64.0) as i32 & 1;
        match self.texture {
            Texture::Stripes => stripe(a) == 1,
            Texture::Checks => stripe(a) != stripe(b),
        }
    }
}

impl Shape {
    /// Whether the shape, which lies around (0, 0) with a radius of about 1, covers this point.
    fn covers(self, u: f32, v: f32) -> bool {
        let square = u * u + v * v;
        let (across, along) = (u.abs(), v.abs());
        match self {
            Shape::Disc => square < 0.85,
            Shape::Square => across.max(along) < 0.8,
            // Equilateral: three sides at the same distance from the centre.
            Shape::Triangle => v < 0.55 && 0.866 * across - 0.5 * v < 0.55,
            Shape::Cross => across.min(along) < 0.3 && across.max(along) < 1.0,
            Shape::Ring => (0.25..1.0).contains(&square),
        }
    }
}

/// A straight stroke across the picture.
struct Stroke {
    through: [f32; 2],
    turn: Turn,
    half_width: f32,
    half_length: f32,
    colour: Colour,
}

impl Stroke {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        Self {
            through: [between(rng, 4.0, 28.0), between(rng, 4.0, 28.0)],
            turn: Turn::random(rng),
            half_width: between(rng, 0.5, 1.5),
            half_length: between(rng, 4.0, 16.0),
            colour: colour(rng),
        }
    }

    fn paint(&self, canvas: &mut Canvas) {
        for (i, pixel) in canvas.iter_mut().enumerate() {
            let at = [
                (i % SIDE) as f32 + 0.5 - self.through[0],
                (i / SIDE) as f32 + 0.5 - self.through[1],
            ];
            let [along, across] = self.turn.apply(at);
            if along.abs() < self.half_length {
                let cover = (self.half_width + 0.5 - across.abs()).clamp(0.0, 1.0);
                *pixel = mix(*pixel, self.colour, cover);
            }
        }
    }
}

/// A rotation, as cosine and sine.
#[derive(Clone, Copy)]
struct Turn([f32; 2]);

impl Turn {
    /// A random direction, each equally likely: that of a point in a disc, drawn again where it lies outside.
    fn random(rng: &mut ChaCha8Rng) -> Self {
        loop {
            let (x, y) = (between(rng, -1.0, 1.0), between(rng, -1.0, 1.0));
            let square = x * x + y * y;
            if (0.01..=1.0).contains(&square) {
                let length = square.sqrt();
                return Self([x / length, y / length]);
            }
        }
    }

    /// Upright, tilted by up to 17 degrees either way.
    fn tilt(rng: &mut ChaCha8Rng) -> Self {
        let y = between(rng, -0.3, 0.3);
        Self([(1.0 - y * y).sqrt(), y])
    }

    fn apply(self, [x, y]: [f32; 2]) -> [f32; 2] {
        let [cos, sin] = self.0;
        [cos * x + sin * y, cos * y - sin * x]
    }
}

/// Applies light, contrast and noise to the colours, and rounds them to bytes.
fn develop(canvas: &Canvas, rng: &mut ChaCha8Rng, image: &mut [u8]) {
    let contrast = between(rng, 0.6, 1.0);
    let light: Colour = std::array::from_fn(|_| between(rng, -20.0, 20.0));
    let strength = between(rng, 0.03, 0.12);
    let planes = image.chunks_exact_mut(SIDE * SIDE);
    for (channel, plane) in planes.enumerate() {
        for (byte, colour) in plane.iter_mut().zip(canvas) {
            // The sum of four bytes is close to normal: mean 510, deviation 148.
            let sum: u32 = rng.next_u32().to_le_bytes().iter().map(|&b| u32::from(b)).sum();
            let noise = (sum as f32 - 510.0) * strength;
            let value = (colour[channel] - 127.5) * contrast + 127.5 + light[channel] + noise;
            *byte = (value.clamp(0.0, 255.0) + 0.5) as u8;
        }
    }
}

/// A number from `low` to `high`.
fn between(rng: &mut ChaCha8Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * unit(rng)
}

/// A colour that is neither very dark nor very light.
fn colour(rng: &mut ChaCha8Rng) -> Colour {
    std::array::from_fn(|_| between(rng, 20.0, 235.0))
}

/// A clearly lighter shade of a dark colour, or a darker one of a light colour.
fn contrast(colour: Colour, rng: &mut ChaCha8Rng) -> Colour {
    let mean = (colour[0] + colour[1] + colour[2]) / 3.0;
    let shade = if mean > 127.5 { 0.0 } else { 255.0 };
    mix(colour, [shade; 3], between(rng, 0.35, 0.7))
}

/// The colour between two; `share` is that of the second.
fn mix(from: Colour, to: Colour, share: f32) -> Colour {
    std::array::from_fn(|i| from[i] + (to[i] - from[i]) * share)
}
