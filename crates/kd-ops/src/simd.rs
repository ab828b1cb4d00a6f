//! Vectors of f32 for three kinds of processors, one of which is chosen at run time.
//!
//! A kernel is written once, as an `#[inline(always)]` function that is generic over [`Simd`]. The macro [`kernel!`]
//! compiles it three times, each time inside a function that may use the processor features of its vectors.

/// A kind of vector unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512 F: 16 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// x86-64 with AVX2 and FMA: 8 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Any processor: arrays of 8 numbers, which the compiler may turn into vectors.
    Portable,
}

impl Isa {
    /// The best that this processor has, or the one that the environment variable `KD_ISA` asks
    /// for (`portable`, `avx2`, `avx512`), if the processor has it.
    pub fn detect() -> Self {
        static DETECTED: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *DETECTED.get_or_init(|| {
            let wanted = std::env::var("KD_ISA").ok();
            let available = Self::available();
            let named = |isa: &&Isa| Some(isa.name()) == wanted.as_deref();
            available.iter().find(named).or(available.first()).copied().unwrap_or(Isa::Portable)
        })
    }

    /// What this processor can run, best first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 && is_x86_feature_detected!("avx512f") {
                found.push(Isa::Avx512);
            }
            if avx2 {
                found.push(Isa::Avx2);
            }
        }
        found.push(Isa::Portable);
        found
    }

    /// Its name in the environment variable `KD_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    /// Numbers in one vector.
    pub fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => 8,
            Isa::Portable => 8,
        }
    }
}

/// Operations on vectors `V` of `LANES` numbers.
///
/// # Safety
/// Every function needs a processor that has the implementor's features; `load` and `store`
/// need `LANES` readable or writable numbers at the pointer (no alignment is asked for), and
/// `transpose8` 8 rows of 8 numbers, `stride` numbers apart, on both sides.
pub(crate) trait Simd: Copy {
    const LANES: usize;
    type V: Copy;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the processor can.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `max(v, 0)` in each lane; NaN stays NaN.
    unsafe fn relu(v: Self::V) -> Self::V;
    /// In each lane `(new, tag)` where `new > old` or `new` is NaN, else `(old, old_tag)`: a step of a search for the maximum
    /// and for where it lies, in which the first of equals stays.
    unsafe fn later_max(
        old: Self::V,
        old_tag: Self::V,
        new: Self::V,
        tag: Self::V,
    ) -> (Self::V, Self::V);
    /// In each lane `v` where `a == b`, else zero.
    unsafe fn where_equal(a: Self::V, b: Self::V, v: Self::V) -> Self::V;
    /// In each lane `v` where `y > 0`, else zero.
    unsafe fn where_positive(y: Self::V, v: Self::V) -> Self::V;
    /// `v` within two bounds in each lane. A bound that is NaN does not hold; NaN stays NaN.
    unsafe fn clamp(v: Self::V, low: Self::V, high: Self::V) -> Self::V;
    /// In each lane `v` where `y` is above `low` and not at or above `high`, else zero. A `high` that is NaN does not hold.
    unsafe fn where_within(y: Self::V, low: Self::V, high: Self::V, v: Self::V) -> Self::V;
    /// Writes the transpose of 8 rows of 8 numbers; a stride is the distance between two rows, in numbers.
    unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
}

/// Vectors for any processor: arrays of 8 numbers.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Portable {
    #[inline(always)]
    fn map2(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

impl Simd for Portable {
    const LANES: usize = 8;
    type V = [f32; 8];
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // `f32::mul_add` would call a library function where there is no FMA instruction.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn relu(v: Self::V) -> Self::V {
        v.map(|v| if v < 0.0 { 0.0 } else { v })
    }
    #[inline(always)]
    unsafe fn later_max(
        old: Self::V,
        old_tag: Self::V,
        new: Self::V,
        tag: Self::V,
    ) -> (Self::V, Self::V) {
        let wins: [bool; 8] = std::array::from_fn(|i| new[i] > old[i] || new[i].is_nan());
        (
            std::array::from_fn(|i| if wins[i] { new[i] } else { old[i] }),
            std::array::from_fn(|i| if wins[i] { tag[i] } else { old_tag[i] }),
        )
    }
    #[inline(always)]
    unsafe fn where_equal(a: Self::V, b: Self::V, v: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] == b[i] { v[i] } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn where_positive(y: Self::V, v: Self::V) -> Self::V {
        std::array::from_fn(|i| if y[i] > 0.0 { v[i] } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn clamp(v: Self::V, low: Self::V, high: Self::V) -> Self::V {
        let above = Self::map2(v, low, |v, low| if v < low { low } else { v });
        Self::map2(above, high, |v, high| if v > high { high } else { v })
    }
    #[inline(always)]
    unsafe fn where_within(y: Self::V, low: Self::V, high: Self::V, v: Self::V) -> Self::V {
        let without = |i: usize| y[i] <= low[i] || y[i] >= high[i] || y[i].is_nan();
        std::array::from_fn(|i| if without(i) { 0.0 } else { v[i] })
    }
    #[inline(always)]
    unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for row in 0..8 {
            for col in 0..8 {
                // SAFETY: the trait's contract: 8 rows of 8 on both sides.
                unsafe { *to.add(col * to_stride + row) = *from.add(row * from_stride + col) };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    // SAFETY of every block below: the trait's contract gives the processor features and the
    // memory that each instruction needs.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx2 {
        const LANES: usize = 8;
        type V = __m256;
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn relu(v: Self::V) -> Self::V {
            // The instruction returns its second operand where one is NaN.
            unsafe { _mm256_max_ps(_mm256_setzero_ps(), v) }
        }
        #[inline(always)]
        unsafe fn later_max(
            old: Self::V,
            old_tag: Self::V,
            new: Self::V,
            tag: Self::V,
        ) -> (Self::V, Self::V) {
            unsafe {
                let greater = _mm256_cmp_ps::<_CMP_GT_OQ>(new, old);
                let wins = _mm256_or_ps(greater, _mm256_cmp_ps::<_CMP_UNORD_Q>(new, new));
                (_mm256_blendv_ps(old, new, wins), _mm256_blendv_ps(old_tag, tag, wins))
            }
        }
        #[inline(always)]
        unsafe fn where_equal(a: Self::V, b: Self::V, v: Self::V) -> Self::V {
            unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b), v) }
        }
        #[inline(always)]
        unsafe fn where_positive(y: Self::V, v: Self::V) -> Self::V {
            unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(y, _mm256_setzero_ps()), v) }
        }
        #[inline(always)]
        unsafe fn clamp(v: Self::V, low: Self::V, high: Self::V) -> Self::V {
            // The instructions return their second operand where one is NaN.
            unsafe { _mm256_min_ps(high, _mm256_max_ps(low, v)) }
        }
        #[inline(always)]
        unsafe fn where_within(y: Self::V, low: Self::V, high: Self::V, v: Self::V) -> Self::V {
            unsafe {
                let above = _mm256_cmp_ps::<_CMP_GT_OQ>(y, low);
                let below = _mm256_cmp_ps::<_CMP_NGE_UQ>(y, high);
                _mm256_and_ps(_mm256_and_ps(above, below), v)
            }
        }
        #[inline(always)]
        unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            unsafe {
                let r0 = _mm256_loadu_ps(from);
                let r1 = _mm256_loadu_ps(from.add(from_stride));
                let r2 = _mm256_loadu_ps(from.add(2 * from_stride));
                let r3 = _mm256_loadu_ps(from.add(3 * from_stride));
                let r4 = _mm256_loadu_ps(from.add(4 * from_stride));
                let r5 = _mm256_loadu_ps(from.add(5 * from_stride));
                let r6 = _mm256_loadu_ps(from.add(6 * from_stride));
                let r7 = _mm256_loadu_ps(from.add(7 * from_stride));
                let t0 = _mm256_unpacklo_ps(r0, r1);
                let t1 = _mm256_unpackhi_ps(r0, r1);
                let t2 = _mm256_unpacklo_ps(r2, r3);
                let t3 = _mm256_unpackhi_ps(r2, r3);
                let t4 = _mm256_unpacklo_ps(r4, r5);
                let t5 = _mm256_unpackhi_ps(r4, r5);
                let t6 = _mm256_unpacklo_ps(r6, r7);
                let t7 = _mm256_unpackhi_ps(r6, r7);
                let s0 = _mm256_shuffle_ps::<0x44>(t0, t2);
                let s1 = _mm256_shuffle_ps::<0xEE>(t0, t2);
                let s2 = _mm256_shuffle_ps::<0x44>(t1, t3);
                let s3 = _mm256_shuffle_ps::<0xEE>(t1, t3);
                let s4 = _mm256_shuffle_ps::<0x44>(t4, t6);
                let s5 = _mm256_shuffle_ps::<0xEE>(t4, t6);
                let s6 = _mm256_shuffle_ps::<0x44>(t5, t7);
                let s7 = _mm256_shuffle_ps::<0xEE>(t5, t7);
                _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(s0, s4));
                _mm256_storeu_ps(to.add(to_stride), _mm256_permute2f128_ps::<0x20>(s1, s5));
                _mm256_storeu_ps(to.add(2 * to_stride), _mm256_permute2f128_ps::<0x20>(s2, s6));
                _mm256_storeu_ps(to.add(3 * to_stride), _mm256_permute2f128_ps::<0x20>(s3, s7));
                _mm256_storeu_ps(to.add(4 * to_stride), _mm256_permute2f128_ps::<0x31>(s0, s4));
                _mm256_storeu_ps(to.add(5 * to_stride), _mm256_permute2f128_ps::<0x31>(s1, s5));
                _mm256_storeu_ps(to.add(6 * to_stride), _mm256_permute2f128_ps::<0x31>(s2, s6));
                _mm256_storeu_ps(to.add(7 * to_stride), _mm256_permute2f128_ps::<0x31>(s3, s7));
            }
        }
    }

    /// AVX-512 F, with AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    // SAFETY of every block below: as above.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx512 {
        const LANES: usize = 16;
        type V = __m512;
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn relu(v: Self::V) -> Self::V {
            unsafe { _mm512_max_ps(_mm512_setzero_ps(), v) }
        }
        #[inline(always)]
        unsafe fn later_max(
            old: Self::V,
            old_tag: Self::V,
            new: Self::V,
            tag: Self::V,
        ) -> (Self::V, Self::V) {
            unsafe {
                let wins = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(new, old)
                    | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(new, new);
                (_mm512_mask_blend_ps(wins, old, new), _mm512_mask_blend_ps(wins, old_tag, tag))
            }
        }
        #[inline(always)]
        unsafe fn where_equal(a: Self::V, b: Self::V, v: Self::V) -> Self::V {
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b), v) }
        }
        #[inline(always)]
        unsafe fn where_positive(y: Self::V, v: Self::V) -> Self::V {
            unsafe {
                _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, _mm512_setzero_ps()), v)
            }
        }
        #[inline(always)]
        unsafe fn clamp(v: Self::V, low: Self::V, high: Self::V) -> Self::V {
            unsafe { _mm512_min_ps(high, _mm512_max_ps(low, v)) }
        }
        #[inline(always)]
        unsafe fn where_within(y: Self::V, low: Self::V, high: Self::V, v: Self::V) -> Self::V {
            unsafe {
                let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, low);
                let below = _mm512_cmp_ps_mask::<_CMP_NGE_UQ>(y, high);
                _mm512_maskz_mov_ps(above & below, v)
            }
        }
        #[inline(always)]
        unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            unsafe { super::Avx2::transpose8(from, from_stride, to, to_stride) }
        }
    }
}

/// `kernel! { fn name(isa, args...) = generic_body; }` defines `unsafe fn name`, which runs
/// `generic_body::<S>(args...)` compiled for the vectors `S` that `isa` names.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident;) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// `isa` must be one of [`Isa::available`]; for the rest see the body.
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::simd::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: the caller's contract, passed on.
                unsafe { $body::<$crate::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: the caller's contract, passed on.
                unsafe { $body::<$crate::simd::Avx2>($($arg),*) }
            }
            // SAFETY: the caller's contract, passed on.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::simd::Isa::Avx2 => avx2($($arg),*),
                    $crate::simd::Isa::Portable => $body::<$crate::simd::Portable>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use kernel;
