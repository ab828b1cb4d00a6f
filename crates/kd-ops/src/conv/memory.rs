//! Cutting memory into pieces.

/// Cuts the first `len` numbers off `memory`.
pub(crate) fn carve<'a>(memory: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (piece, rest) = std::mem::take(memory).split_at_mut(len);
    *memory = rest;
    piece
}

/// Makes `memory` so many zeros, without a new allocation where it has the room.
pub(crate) fn zeros(memory: &mut Vec<f32>, len: usize) {
    memory.clear();
    if memory.capacity() < len {
        // Not both at once.
        *memory = Vec::new();
        *memory = vec![0.0; len];
    } else {
        memory.resize(len, 0.0);
    }
}

/// `count` pieces of `len` entries each (the last may be shorter); also where `len` is zero, for which
/// `chunks_mut` has no answer.
pub(crate) fn pieces<T>(mut all: &mut [T], len: usize, count: usize) -> Vec<&mut [T]> {
    (0..count)
        .map(|_| {
            let len = len.min(all.len());
            let (piece, rest) = std::mem::take(&mut all).split_at_mut(len);
            all = rest;
            piece
        })
        .collect()
}
