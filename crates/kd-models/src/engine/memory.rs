//! Where values, gradients and what else a pass needs lie, by when each is first and last used.

use kd_ops::nhwc::Place;

/// When a buffer is used, in positions of the pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) len: usize,
    /// The first and the last position at which it is used; none for a buffer that is not used.
    pub(super) used: Option<(usize, usize)>,
}

impl Life {
    pub(super) fn of(len: usize) -> Self {
        Self { len, used: None }
    }

    pub(super) fn at(&mut self, position: usize) {
        let (first, last) = self.used.unwrap_or((position, position));
        self.used = Some((first.min(position), last.max(position)));
    }
}

/// Each buffer's place, and how many numbers all take together.
pub(super) struct Layout {
    pub(super) places: Vec<Place>,
    pub(super) kept: usize,
    pub(super) local: usize,
}

/// Lays buffers out so that those which are used at the same time do not meet, each at a multiple of `align` numbers. One whose uses
/// lie within one segment is local; `segment` gives the segment of a position.
pub(super) fn lay_out(lives: &[Life], align: usize, segment: impl Fn(usize) -> usize) -> Layout {
    let mut order: Vec<usize> = (0..lives.len()).filter(|i| lives[*i].used.is_some()).collect();
    order.sort_by_key(|i| lives[*i].used);
    let mut places = vec![Place { kept: false, offset: 0, len: 0 }; lives.len()];
    let mut ends = [0, 0];
    // The buffers that are in use, of either kind: offset, length and last position.
    let mut alive: [Vec<(usize, usize, usize)>; 2] = [Vec::new(), Vec::new()];
    for buffer in order {
        let Life { len, used: Some((first, last)) } = lives[buffer] else { continue };
        let kept = segment(first) != segment(last);
        let room = len.next_multiple_of(align);
        let alive = &mut alive[usize::from(kept)];
        alive.retain(|(_, _, until)| *until >= first);
        alive.sort_unstable();
        let mut offset = 0;
        for &(start, len_there, _) in alive.iter() {
            if offset + room <= start {
                break;
            }
            offset = offset.max(start + len_there);
        }
        alive.push((offset, room, last));
        let end = &mut ends[usize::from(kept)];
        *end = (*end).max(offset + room);
        places[buffer] = Place { kept, offset, len };
    }
    Layout { places, kept: ends[1], local: ends[0] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_in_use_at_the_same_time_do_not_meet_and_free_room_is_used_again() {
        let lives = [(8, 0, 1), (4, 1, 2), (8, 2, 5), (4, 3, 3), (2, 0, 0)];
        let lives: Vec<Life> = lives
            .iter()
            .map(|&(len, first, last)| Life { len, used: Some((first, last)) })
            .collect();
        let layout = lay_out(&lives, 1, |position| position / 3);
        let of = |i: usize| (layout.places[i].kept, layout.places[i].offset);
        assert_eq!(of(0), (false, 2));
        assert_eq!(of(1), (false, 10));
        // Used in two segments.
        assert_eq!(of(2), (true, 0));
        assert_eq!(of(3), (false, 0));
        assert_eq!(of(4), (false, 0));
        assert_eq!((layout.kept, layout.local), (8, 14));
    }
}
