//! Convolution of any shape as im2col and a matrix product.
//!
//! `columns` is `[I * kh * kw, H' * W']`: each row is the image shifted to one entry of the
//! window. Then `y = weight columns`, `dweight = dy columns^T`, `dcolumns = weight^T dy`.

use rayon::prelude::*;

use super::Geometry;
use crate::cpu::with_scratch;
use crate::matmul::{Threads, View, matmul};

/// For each output position along one axis the input position, or `None` in the padding.
fn source(g: &Geometry, out: usize, entry: usize, size: usize) -> Option<usize> {
    (out * g.stride + entry * g.dilation).checked_sub(g.padding).filter(|&at| at < size)
}

fn im2col(g: &Geometry, image: &[f32], columns: &mut [f32]) {
    let mut rows = columns.chunks_exact_mut(g.out_pixels());
    for plane in image.chunks_exact(g.height * g.width) {
        for ky in 0..g.kernel_height {
            for kx in 0..g.kernel_width {
                let Some(row) = rows.next() else { return };
                for (out_y, row) in row.chunks_exact_mut(g.out_width).enumerate() {
                    let Some(y) = source(g, out_y, ky, g.height) else {
                        row.fill(0.0);
                        continue;
                    };
                    for (out_x, value) in row.iter_mut().enumerate() {
                        *value =
                            source(g, out_x, kx, g.width).map_or(0.0, |x| plane[y * g.width + x]);
                    }
                }
            }
        }
    }
}

fn col2im(g: &Geometry, columns: &[f32], image: &mut [f32]) {
    image.fill(0.0);
    let mut rows = columns.chunks_exact(g.out_pixels());
    for plane in image.chunks_exact_mut(g.height * g.width) {
        for ky in 0..g.kernel_height {
            for kx in 0..g.kernel_width {
                let Some(row) = rows.next() else { return };
                for (out_y, row) in row.chunks_exact(g.out_width).enumerate() {
                    let Some(y) = source(g, out_y, ky, g.height) else { continue };
                    for (out_x, value) in row.iter().enumerate() {
                        if let Some(x) = source(g, out_x, kx, g.width) {
                            plane[y * g.width + x] += value;
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn forward(
    g: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    relu: bool,
) -> Vec<f32> {
    let mut y = vec![0.0; g.batch * g.out_len()];
    let (window, pixels) = (g.window_len(), g.out_pixels());
    y.par_chunks_mut(g.out_len().max(1)).zip(x.par_chunks(g.in_len().max(1))).for_each(|(y, x)| {
        with_scratch(window * pixels, |columns| {
            im2col(g, x, columns);
            let size = (g.out_channels, window, pixels);
            let (weight, columns) = (View::rows(weight, window), View::rows(columns, pixels));
            matmul(y, size, weight, columns, false, Threads::One);
        });
        for (y, &bias) in y.chunks_exact_mut(pixels.max(1)).zip(bias) {
            for y in y {
                *y += bias;
                if relu && *y < 0.0 {
                    *y = 0.0;
                }
            }
        }
    });
    y
}

pub(super) fn data_gradient(g: &Geometry, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut dx = vec![0.0; g.batch * g.in_len()];
    let (window, pixels) = (g.window_len(), g.out_pixels());
    dx.par_chunks_mut(g.in_len().max(1)).zip(dy.par_chunks(g.out_len().max(1))).for_each(
        |(dx, dy)| {
            with_scratch(window * pixels, |columns| {
                let size = (window, g.out_channels, pixels);
                let (weight, dy) = (View::transposed(weight, window), View::rows(dy, pixels));
                matmul(columns, size, weight, dy, false, Threads::One);
                col2im(g, columns, dx);
            });
        },
    );
    dx
}

pub(super) fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let (window, pixels) = (g.window_len(), g.out_pixels());
    let images = super::images_per_part(g.batch);
    let parts: Vec<Vec<f32>> = x
        .par_chunks((g.in_len() * images).max(1))
        .zip(dy.par_chunks((g.out_len() * images).max(1)))
        .map(|(x, dy)| {
            let mut dweight = vec![0.0; g.weight_len()];
            for (x, dy) in x.chunks_exact(g.in_len()).zip(dy.chunks_exact(g.out_len())) {
                with_scratch(window * pixels, |columns| {
                    im2col(g, x, columns);
                    let size = (g.out_channels, pixels, window);
                    let (dy, columns) = (View::rows(dy, pixels), View::transposed(columns, pixels));
                    matmul(&mut dweight, size, dy, columns, true, Threads::One);
                });
            }
            dweight
        })
        .collect();
    super::sum_parts(parts, g.weight_len())
}

pub(super) fn bias_gradient(g: &Geometry, dy: &[f32]) -> Vec<f32> {
    let images = super::images_per_part(g.batch);
    let parts: Vec<Vec<f32>> = dy
        .par_chunks((g.out_len() * images).max(1))
        .map(|dy| {
            let mut dbias = vec![0.0; g.out_channels];
            for image in dy.chunks_exact(g.out_len().max(1)) {
                for (sum, plane) in dbias.iter_mut().zip(image.chunks_exact(g.out_pixels())) {
                    *sum += plane.iter().sum::<f32>();
                }
            }
            dbias
        })
        .collect();
    super::sum_parts(parts, g.out_channels)
}
