//! Matrix products of row-major f32 matrices, by the `gemm` crate.

/// A matrix in memory: how far apart its rows and its columns are.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The entries, from (0, 0) on.
    pub data: &'a [f32],
    /// Numbers between an entry and the one below it.
    pub row_stride: usize,
    /// Numbers between an entry and the one to its right.
    pub col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix with `cols` columns.
    pub fn rows(data: &'a [f32], cols: usize) -> Self {
        Self { data, row_stride: cols, col_stride: 1 }
    }

    /// The transpose of a row-major matrix that is stored with `cols` columns.
    pub fn transposed(data: &'a [f32], cols: usize) -> Self {
        Self { data, row_stride: 1, col_stride: cols }
    }

    /// Whether all entries of a matrix of this size lie within the memory.
    fn covers(&self, rows: usize, cols: usize) -> bool {
        rows == 0
            || cols == 0
            || (rows - 1) * self.row_stride + (cols - 1) * self.col_stride < self.data.len()
    }
}

/// The matrix product `out = a b`, or `out += a b` with `add`. `a` is `m` x `k`, `b` is `k` x `n`, and `out` is `m` x `n`,
/// row-major. rayon's threads share the work.
pub fn matmul(
    out: &mut [f32],
    (m, k, n): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    add: bool,
) {
    assert!(out.len() >= m * n && a.covers(m, k) && b.covers(k, n));
    let parallelism = gemm::Parallelism::Rayon(rayon::current_num_threads());
    // SAFETY: the assertion above keeps every access inside the three slices; `out` is borrowed
    // mutably, so it overlaps neither `a` nor `b`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
