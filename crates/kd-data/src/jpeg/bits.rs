//! The bits of a JPEG's scans, and the Huffman codes in them (ITU-T T.81, annexes C and F).

/// A Huffman table: for each code of at most nine bits its length and value at once, for longer ones the largest code of each length.
pub(super) struct Huffman {
    /// For the next nine bits: the code's length in the upper byte (0 where it is longer) and its value in the lower.
    short: [u16; 512],
    /// For each length the first code behind the last one of it, moved to 16 bits.
    ends: [u32; 18],
    /// For each length what added to a code gives the place of its value.
    offsets: [i32; 17],
    values: Vec<u8>,
}

impl Huffman {
    /// The table with so many codes of 1 to 16 bits, of these values; `None` where there are more codes than fit.
    pub(super) fn new(counts: &[u8; 16], values: &[u8]) -> Option<Self> {
        let mut table =
            Self { short: [0; 512], ends: [0; 18], offsets: [0; 17], values: values.to_vec() };
        let (mut code, mut place) = (0u32, 0usize);
        for length in 1..=16 {
            let count = usize::from(counts[length - 1]);
            if code as usize + count > 1 << length || place + count > values.len() {
                return None;
            }
            table.offsets[length] = place as i32 - code as i32;
            for value in &values[place..place + count] {
                if length <= 9 {
                    let first = (code as usize) << (9 - length);
                    let entry = (length as u16) << 8 | u16::from(*value);
                    table.short[first..first + (1 << (9 - length))].fill(entry);
                }
                code += 1;
            }
            place += count;
            table.ends[length] = code << (16 - length);
            code <<= 1;
        }
        table.ends[17] = u32::MAX;
        Some(table)
    }
}

/// Reads the bits of a scan, without the zero bytes that follow 0xff, up to the next marker.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bits that are read, the next one the highest.
    buffer: u64,
    count: u32,
    /// How many bits beyond the end were made up: zeros, of which a whole scan needs a few at most.
    missing: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, buffer: 0, count: 0, missing: 0 }
    }

    fn fill(&mut self) {
        while self.count <= 56 {
            let byte = match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(0xff), Some(0)) => {
                    self.at += 2;
                    0xff
                }
                (Some(0xff), _) | (None, _) => {
                    self.missing += 8;
                    0
                }
                (Some(byte), _) => {
                    self.at += 1;
                    *byte
                }
            };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    /// Whether bits were used that are not there.
    pub(super) fn ran_out(&self) -> bool {
        self.missing > self.count
    }

    /// The next bits as a number, at most 16.
    #[inline]
    pub(super) fn take(&mut self, bits: u32) -> i32 {
        if bits == 0 {
            return 0;
        }
        if self.count < bits {
            self.fill();
        }
        let found = (self.buffer >> (64 - bits)) as i32;
        self.buffer <<= bits;
        self.count -= bits;
        found
    }

    /// The next code's value; `None` where there is no such code.
    #[inline]
    pub(super) fn code(&mut self, table: &Huffman) -> Option<u8> {
        if self.count < 16 {
            self.fill();
        }
        let entry = table.short[(self.buffer >> 55) as usize];
        if entry != 0 {
            let length = u32::from(entry >> 8);
            self.buffer <<= length;
            self.count -= length;
            return Some(entry as u8);
        }
        let next = (self.buffer >> 48) as u32;
        let length =
            (10..=17).find(|length| next < table.ends[*length]).filter(|length| *length < 17)?;
        let code = (next >> (16 - length)) as i32;
        self.buffer <<= length;
        self.count -= length as u32;
        table.values.get((code + table.offsets[length]) as usize).copied()
    }

    /// A number of so many bits, of which those with a first bit of 0 are negative: `EXTEND`.
    #[inline]
    pub(super) fn signed(&mut self, bits: u32) -> i32 {
        let found = self.take(bits);
        if bits > 0 && found < 1 << (bits - 1) { found - (1 << bits) + 1 } else { found }
    }

    /// Passes over the restart marker that comes next; `None` where none does.
    pub(super) fn restart(&mut self) -> Option<()> {
        let marker = self.bytes.get(self.at..self.at + 2)?;
        if marker[0] != 0xff || !(0xd0..=0xd7).contains(&marker[1]) {
            return None;
        }
        let from = self.at + 2;
        // Before it at most the rest of a byte is left.
        if self.ran_out() || self.count > self.missing + 7 {
            return None;
        }
        *self = Self::new(self.bytes, from);
        Some(())
    }

    /// Where the next marker is.
    pub(super) fn end(&self) -> usize {
        self.at
    }
}
