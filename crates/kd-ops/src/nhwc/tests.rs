//! Every vector unit against sums and formulas written out in f64.

use super::*;

mod conv;

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32;
    (0..len as u32).map(|i| hash(i) / (1 << 23) as f32 - 1.0).collect()
}

/// For each vector unit: a map of 5 channels and its values, zeros in the padding channels.
fn maps() -> Vec<(Isa, Map, Vec<f32>)> {
    let values = |isa| {
        let map = Map::new(isa, [5, 7, 6]);
        let mut x = numbers(map.len(), 1);
        for pixel in x.chunks_exact_mut(map.padded) {
            pixel[map.channels..].fill(0.0);
        }
        (isa, map, x)
    };
    Isa::available().into_iter().map(values).collect()
}

fn assert_near(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
        "{what}: {found} for {expected}"
    );
}

#[test]
fn moments_are_those_of_f64_also_far_from_zero() {
    for (isa, map, mut x) in maps() {
        for distance in [0.0f32, 1000.0] {
            x.iter_mut().for_each(|x| *x += distance);
            let (mut mean, mut squares) = (vec![0.0; map.padded], vec![0.0; map.padded]);
            let mut moments = Moments { mean: &mut mean, squares: &mut squares };
            // In two parts.
            moments.start();
            let (first, rest) = x.split_at(5 * map.padded);
            moments.add(isa, &x, first);
            moments.add(isa, &x, rest);
            moments.finish(&x, map.pixels());
            for c in 0..map.channels {
                let of_channel: Vec<f64> =
                    x.iter().skip(c).step_by(map.padded).map(|&x| f64::from(x)).collect();
                let expected = of_channel.iter().sum::<f64>() / map.pixels() as f64;
                let spread: f64 = of_channel.iter().map(|x| (x - expected).powi(2)).sum();
                assert_near(mean[c], expected, "mean");
                assert_near(squares[c], spread, "squares");
            }
        }
    }
}

#[test]
fn a_frame_has_zeros_around_what_was_activated_and_gives_it_back() {
    for (isa, map, x) in maps() {
        let (scale, shift) = (numbers(map.padded, 2), numbers(map.padded, 3));
        let affine = Some(Affine { scale: &scale, shift: &shift });
        let read = Read { x: &x, affine, activation: Activation::Relu };
        // As wide as the map's pixels, and as a convolution of unpadded channels has them.
        for channels in [map.padded, map.channels] {
            let room = Frame { rows: 11, line: 9, channels, top: 2, left: 1 };
            let mut to = vec![f32::NAN; room.len()];
            elementwise::frame(isa, (read, &map), &mut to, &room);
            for (at, found) in to.iter().enumerate() {
                let (c, pixel) = (at % channels, at / channels);
                let (row, column) = (pixel / room.line, pixel % room.line);
                let inside = (2..9).contains(&row) && (1..7).contains(&column);
                let expected = match inside && c < map.channels {
                    true => {
                        let x = x[((row - 2) * map.width + column - 1) * map.padded + c];
                        f64::from(x).mul_add(f64::from(scale[c]), f64::from(shift[c])).max(0.0)
                    }
                    // A padding channel has what its own scale and shift make of zero.
                    false if inside => f64::from(shift[c].max(0.0)),
                    false => 0.0,
                };
                assert_near(f64::from(*found), expected, "frame");
            }
            let mut back = vec![1.0; map.len()];
            let plain = (None, Activation::Identity);
            elementwise::unframe(isa, (&to, &room), plain, (&mut back, &map), true);
            let at = (2 * room.line + 1) * channels;
            assert_near(f64::from(back[0]), 1.0 + f64::from(to[at]), "unframe");
        }
    }
}

#[test]
fn activations_and_their_derivatives_at_their_bounds() {
    let x = [-1.0f32, -0.0, 0.0, 0.5, 5.5, 6.0, 7.0, f32::INFINITY];
    let cases = [
        (Activation::Identity, x, [1.0f32; 8]),
        (
            Activation::Relu,
            [0.0, 0.0, 0.0, 0.5, 5.5, 6.0, 7.0, f32::INFINITY],
            [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        ),
        (
            Activation::Relu6,
            [0.0, 0.0, 0.0, 0.5, 5.5, 6.0, 6.0, 6.0],
            [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        ),
    ];
    for isa in Isa::available() {
        for (of, values, derivatives) in cases {
            // Two times eight are a whole number of any unit's vectors.
            let twice = |x: [f32; 8]| [x, x].concat();
            let mut y = twice(x);
            activation(isa, of, &mut y);
            assert_eq!(y, twice(values), "{isa:?} {of:?}");
            let mut g = vec![1.0; 16];
            mask_by_value(isa, &mut g, &y, of);
            assert_eq!(g, twice(derivatives), "{isa:?} {of:?}");
            let (scale, shift) = ([2.0f32; 16], [0.0f32; 16]);
            let affine = Affine { scale: &scale, shift: &shift };
            let half: Vec<f32> = twice(x).iter().map(|x| x / 2.0).collect();
            let mut g = vec![1.0; 16];
            let [mean, mut sums, mut products] = [(); 3].map(|()| vec![0.0; 16]);
            let mean: Vec<f32> = mean.iter().map(|mean: &f64| *mean as f32).collect();
            let mask = Some((affine, of));
            statistics::add_masked_sums(isa, &mut g, &half, mask, &mean, &mut sums, &mut products);
            assert_eq!(g, twice(derivatives), "{isa:?} {of:?}");
        }
        let mut nan = [f32::NAN; 16];
        activation(isa, Activation::Relu6, &mut nan);
        assert!(nan.iter().all(|x| x.is_nan()));
    }
}

#[test]
fn a_normalisations_gradient_is_the_formulas() {
    for (isa, map, x) in maps() {
        let mut g = numbers(map.len(), 4);
        let [scale, slope, mean, shift] = [5, 6, 7, 8].map(|seed| numbers(map.padded, seed));
        let by = NormGradient { scale: &scale, slope: &slope, mean: &mean, shift: &shift };
        let mut to = vec![f32::NAN; map.len()];
        norm_gradient(isa, (&g, &x), by, &mut to);
        let (mut sums, mut products) = (vec![0.0; map.padded], vec![0.0; map.padded]);
        add_gradient_sums(isa, &mut g, &x, &mean, &mut sums, &mut products);
        let [mut expected_sums, mut expected_products] = [(); 2].map(|()| vec![0.0; map.padded]);
        for (at, found) in to.iter().enumerate() {
            let c = at % map.padded;
            let [g, x, scale, slope, mean, shift] =
                [g[at], x[at], scale[c], slope[c], mean[c], shift[c]].map(f64::from);
            assert_near(f64::from(*found), scale * g + slope * (x - mean) + shift, "gradient");
            expected_sums[c] += g;
            expected_products[c] += g * (x - mean);
        }
        for c in 0..map.padded {
            assert_near(sums[c], expected_sums[c], "sum");
            assert_near(products[c], expected_products[c], "product");
        }
    }
}

#[test]
fn a_padded_pool_finds_the_first_maximum_and_sends_the_gradient_there() {
    for (isa, map, mut x) in maps() {
        // Equal neighbours, and a window without a positive value.
        x.iter_mut().for_each(|x| *x = (*x * 3.0).round() - 2.0);
        let windows = Windows { kernel: 3, stride: 2, padding: 1 };
        let result = Map::new(isa, [5, 4, 3]);
        let (mut y, mut winners) = (vec![0.0; result.len()], vec![0; result.len()]);
        max_pool(isa, (&x, &map), windows, (&mut y, &result), &mut winners);
        let g = numbers(result.len(), 9);
        let mut dx = vec![f32::NAN; map.len()];
        max_pool_gradient((&g, &result), &winners, windows, (&mut dx, &map));
        let mut expected = vec![0.0f32; map.len()];
        for at in 0..result.len() {
            let (c, pixel) = (at % result.padded, at / result.padded);
            let (oy, ox) = (pixel / result.width, pixel % result.width);
            let mut best: Option<usize> = None;
            for y in (2 * oy).saturating_sub(1)..(2 * oy + 2).min(map.height) {
                for column in (2 * ox).saturating_sub(1)..(2 * ox + 2).min(map.width) {
                    let from = (y * map.width + column) * map.padded + c;
                    if best.is_none_or(|best| x[from] > x[best]) {
                        best = Some(from);
                    }
                }
            }
            let best = best.unwrap();
            assert_eq!(y[at], x[best]);
            expected[best] += g[at];
        }
        assert_eq!(dx, expected);
    }
}

#[test]
#[should_panic(expected = "is in use")]
fn a_place_that_is_written_may_not_be_read() {
    let (mut kept, mut local) = ([0.0; 8], [0.0; 8]);
    let mut memory = Memory { kept: &mut kept, local: &mut local };
    let place = |offset| Place { kept: true, offset, len: 4 };
    memory.places([place(0)], [Place { kept: false, ..place(2) }]);
    memory.places([place(0)], [place(3)]);
}
