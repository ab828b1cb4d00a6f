//! CIFAR's Python version, as torchvision unpacks it: a pickled dictionary with an array of pixels and lists of labels.
//!
//! A pickle is data here: no class in it is looked up and no code runs. The opcodes are those of Python's `Lib/pickletools.py`.

use std::collections::HashMap;

/// A value of a pickle; containers own theirs.
#[derive(Clone)]
enum Value {
    Int(i64),
    /// Bytes, or a text's UTF-8, from one place of the file to another.
    Bytes(usize, usize),
    List(Vec<Value>, Depth),
    Tuple(Vec<Value>, Depth),
    Dict(Vec<(Value, Value)>, Depth),
    True,
    /// What says nothing of pixels or labels: a class, `None`, a number with a point.
    Other,
}

/// How many containers lie in each other, this one and the deepest of those in it.
type Depth = u8;
/// The deepest that containers may lie in each other, so that the stack has room to drop them.
const DEEPEST: Depth = 16;
/// The most opcodes of a file, so that their values fit into memory. CIFAR-100 has some 250,000.
const MOST_OPCODES: usize = 1_000_000;

/// What a file of the Python version holds.
pub(super) struct Batch<'a> {
    /// The array `data`: 3072 bytes for each image.
    pub(super) pixels: &'a [u8],
    /// For each of the lists asked for, the label of each image.
    pub(super) labels: Vec<Vec<u8>>,
}

/// Where in the file something is wrong, what is there, and what was expected.
pub(super) struct Wrong {
    pub(super) offset: usize,
    pub(super) found: String,
    pub(super) expected: &'static str,
}

/// The pixels of a pickled batch and the lists of labels with these names.
pub(super) fn read<'a>(bytes: &'a [u8], lists: &[&str]) -> Result<Batch<'a>, Wrong> {
    let root = Reader { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let Value::Dict(entries, _) = root.run()? else {
        return Err(at(0, "a pickle of something else", "a pickled dictionary"));
    };
    let entry = |name: &str| {
        let is_named = |key: &Value| matches!(key, Value::Bytes(from, to) if &bytes[*from..*to] == name.as_bytes());
        let found = entries.iter().rev().find(|(key, _)| is_named(key));
        found.map(|(_, value)| value)
    };
    let pixels = match entry("data") {
        Some(Value::Bytes(from, to)) => &bytes[*from..*to],
        _ => return Err(at(0, "no array of bytes named data", "one of 3072 bytes for each image")),
    };
    let label = |value: &Value| match value {
        Value::Int(label) => u8::try_from(*label).ok(),
        _ => None,
    };
    let list = |name: &&str| {
        let labels = match entry(name) {
            Some(Value::List(items, _)) => items.iter().map(label).collect::<Option<Vec<u8>>>(),
            _ => None,
        };
        let found = format!("no list of labels named {name}");
        labels.ok_or(at(0, &found, "one of a number from 0 to 255 for each image"))
    };
    let labels = lists.iter().map(list).collect::<Result<_, _>>()?;
    Ok(Batch { pixels, labels })
}

fn at(offset: usize, found: &str, expected: &'static str) -> Wrong {
    Wrong { offset, found: found.into(), expected }
}

/// Reads one opcode after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// The heights of the stack at its marks.
    marks: Vec<usize>,
    /// Values to be repeated, by number; of containers, which are filled later, nothing is kept.
    memo: HashMap<u64, Value>,
}

const WHOLE: &str = "the rest of a pickle";

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<(usize, usize), Wrong> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(at(self.bytes.len(), "the end of the file", WHOLE));
        };
        let from = std::mem::replace(&mut self.at, end);
        Ok((from, end))
    }

    /// A number of so many bytes, little end first.
    fn number(&mut self, count: usize) -> Result<u64, Wrong> {
        let (from, to) = self.take(count)?;
        let digits = self.bytes[from..to].iter().rev();
        Ok(digits.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Bytes whose number is said in so many bytes before them.
    fn counted(&mut self, count: usize) -> Result<Value, Wrong> {
        let length = usize::try_from(self.number(count)?).unwrap_or(usize::MAX);
        let (from, to) = self.take(length)?;
        Ok(Value::Bytes(from, to))
    }

    fn line(&mut self) -> Result<(), Wrong> {
        while self.number(1)? != u64::from(b'\n') {}
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, Wrong> {
        let above_mark = self.marks.last().is_none_or(|mark| self.stack.len() > *mark);
        let value = if above_mark { self.stack.pop() } else { None };
        value.ok_or(at(self.at, "an opcode without a value before it", WHOLE))
    }

    /// The values behind the last mark.
    fn marked(&mut self) -> Result<Vec<Value>, Wrong> {
        let mark =
            self.marks.pop().ok_or(at(self.at, "an opcode without a mark before it", WHOLE))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple(&mut self, count: usize) -> Result<Value, Wrong> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        let depth = self.depth_around(&items)?;
        Ok(Value::Tuple(items, depth))
    }

    /// How deep containers lie in one that holds these.
    fn depth_around(&self, items: &[Value]) -> Result<Depth, Wrong> {
        let depth = |item: &Value| match item {
            Value::List(_, depth) | Value::Tuple(_, depth) | Value::Dict(_, depth) => *depth,
            _ => 0,
        };
        let depth = 1 + items.iter().map(depth).max().unwrap_or(0);
        match depth <= DEEPEST {
            true => Ok(depth),
            false => Err(at(
                self.at,
                "more than 16 lists, tuples or dictionaries in each other",
                "one of the pickles of CIFAR's Python version",
            )),
        }
    }

    /// Adds to the list or dictionary on top of the stack.
    fn extend(&mut self, items: Vec<Value>) -> Result<(), Wrong> {
        let around = self.depth_around(&items)?;
        match self.stack.last_mut() {
            Some(Value::List(list, depth)) => {
                *depth = around.max(*depth);
                list.extend(items);
            }
            Some(Value::Dict(entries, depth)) => {
                *depth = around.max(*depth);
                let mut items = items.into_iter();
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    entries.push((key, value));
                }
            }
            // Such as the attributes of an object.
            Some(_) => {}
            None => return Err(at(self.at, "an opcode without a container before it", WHOLE)),
        }
        Ok(())
    }

    fn remember(&mut self, number: u64) -> Result<(), Wrong> {
        let value = match self.stack.last() {
            Some(value @ (Value::Int(_) | Value::Bytes(..))) => value.clone(),
            _ => Value::Other,
        };
        self.memo.insert(number, value);
        Ok(())
    }

    fn run(mut self) -> Result<Value, Wrong> {
        let mut opcodes = 0;
        loop {
            let start = self.at;
            opcodes += 1;
            if opcodes > MOST_OPCODES {
                let found = format!("more than {MOST_OPCODES} opcodes");
                return Err(at(start, &found, "one of the pickles of CIFAR's Python version"));
            }
            let opcode = self.number(1)? as u8;
            let value = match opcode {
                b'.' => return self.pop(),
                0x80 => {
                    self.take(1)?;
                    continue;
                }
                // A frame of protocol 4: what it holds follows.
                0x95 => {
                    self.take(8)?;
                    continue;
                }
                b'(' => {
                    self.marks.push(self.stack.len());
                    continue;
                }
                b'0' => {
                    self.pop()?;
                    continue;
                }
                b'q' | b'r' | 0x94 => {
                    let number = match opcode {
                        b'q' => self.number(1)?,
                        b'r' => self.number(4)?,
                        _ => self.memo.len() as u64,
                    };
                    self.remember(number)?;
                    continue;
                }
                b'h' | b'j' => {
                    let number = self.number(if opcode == b'h' { 1 } else { 4 })?;
                    self.memo.get(&number).cloned().unwrap_or(Value::Other)
                }
                b'K' => Value::Int(self.number(1)? as i64),
                b'M' => Value::Int(self.number(2)? as i64),
                b'J' => Value::Int(i64::from(self.number(4)? as u32 as i32)),
                0x8a => {
                    let count = self.number(1)? as usize;
                    self.take(count)?;
                    Value::Other
                }
                b'U' | b'C' | 0x8c => self.counted(1)?,
                b'T' | b'B' | b'X' => self.counted(4)?,
                0x8d | 0x8e | 0x96 => self.counted(8)?,
                b'G' => {
                    self.take(8)?;
                    Value::Other
                }
                0x88 => Value::True,
                b'N' | 0x89 => Value::Other,
                b']' => Value::List(Vec::new(), 1),
                b'}' => Value::Dict(Vec::new(), 1),
                b')' => Value::Tuple(Vec::new(), 1),
                b't' => {
                    let items = self.marked()?;
                    let depth = self.depth_around(&items)?;
                    Value::Tuple(items, depth)
                }
                0x85..=0x87 => self.tuple(usize::from(opcode - 0x84))?,
                b'a' | b's' => {
                    let last = self.pop()?;
                    let items = match opcode {
                        b'a' => vec![last],
                        _ => vec![self.pop()?, last],
                    };
                    self.extend(items)?;
                    continue;
                }
                b'e' | b'u' => {
                    let items = self.marked()?;
                    self.extend(items)?;
                    continue;
                }
                // A class or function by two lines, or by two texts.
                b'c' => {
                    self.line()?;
                    self.line()?;
                    Value::Other
                }
                0x93 => {
                    self.pop()?;
                    self.pop()?;
                    Value::Other
                }
                // An array is made by a call, or out of what is handed to it: the bytes among its arguments are its contents.
                b'R' | b'b' | 0x81 => {
                    let arguments = self.pop()?;
                    let made = self.pop()?;
                    match arguments {
                        // An array's state: version, shape, type, whether columns come first, contents.
                        Value::Tuple(items, _)
                            if matches!(items[..], [_, _, _, Value::True, _]) =>
                        {
                            let found = "an array whose columns come first";
                            return Err(at(start, found, "one whose rows do"));
                        }
                        Value::Tuple(items, _) => {
                            let longest = |value: &Value| match value {
                                Value::Bytes(from, to) => to - from,
                                _ => 0,
                            };
                            let items = items.into_iter().filter(|item| longest(item) > 0);
                            items.max_by_key(longest).unwrap_or(made)
                        }
                        _ => made,
                    }
                }
                _ => {
                    let found = format!("the opcode {opcode:#04x}");
                    return Err(at(start, &found, "one of the pickles of CIFAR's Python version"));
                }
            };
            self.stack.push(value);
        }
    }
}
