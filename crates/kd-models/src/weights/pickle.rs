//! The part of Python's pickle format that PyTorch's weights files use, read as plain data: no class is looked up and no
//! code runs.
//!
//! Values lie in one list and refer to each other by position. So a value that is referred to a thousand times exists
//! once, a value within itself is no circle of pointers, and a million nested tuples need no deep recursion: reading takes
//! time and memory in proportion to the file. Opcodes: Python's `Lib/pickletools.py`.

use std::collections::HashMap;

/// The position of a value in its [`Pickle`].
pub(super) type Id = usize;

/// A value of a pickle.
#[derive(Debug)]
pub(super) enum Value {
    Int(i64),
    Text(String),
    /// A class or function, by its module and name with a dot between.
    Global(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What calling a class or function would give; it is not called.
    Call {
        callable: Id,
        arguments: Id,
    },
    /// An object that lies outside of the pickle, by its description.
    Persistent(Id),
    Bool(bool),
    /// None or a float, which say nothing of a tensor.
    Other,
}

/// A pickle's values.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// The value that the pickle is of.
    pub(super) root: Id,
}

impl Pickle {
    /// The value at a position that this pickle gave.
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn global(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Global(name) => Some(name),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub(super) fn count(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The descriptions of all objects that lie outside of the pickle.
    pub(super) fn persistent(&self) -> impl Iterator<Item = Id> {
        self.values.iter().filter_map(|value| match value {
            Value::Persistent(description) => Some(*description),
            _ => None,
        })
    }

    /// A tuple of integers that are not negative.
    pub(super) fn counts(&self, id: Id) -> Option<Vec<usize>> {
        self.tuple(id)?.iter().map(|item| self.count(*item)).collect()
    }
}

/// Reads a pickle.
///
/// # Errors
/// What is wrong with it, and at which byte.
pub(super) fn parse(bytes: &[u8]) -> Result<Pickle, String> {
    Ok(parse_begin(bytes)?.0)
}

/// Reads the pickle that bytes begin with; and how many bytes it has.
///
/// # Errors
/// What is wrong with it, and at which byte.
pub(super) fn parse_begin(bytes: &[u8]) -> Result<(Pickle, usize), String> {
    let mut reader = Reader { bytes, at: 0 };
    let mut machine = Machine::default();
    loop {
        let at = reader.at;
        match step(&mut machine, &mut reader) {
            Ok(false) => {}
            Ok(true) => break,
            Err(reason) => return Err(format!("byte {at} of its pickle: {reason}")),
        }
    }
    let root = machine.pop()?;
    Ok((Pickle { values: machine.values, root }, reader.at))
}

/// The bytes that are still to be read.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..len) else {
            return Err(format!("{len} bytes are announced, {} are left", rest.len()));
        };
        self.at += len;
        Ok(taken)
    }

    /// An unsigned little-endian integer of up to 8 bytes.
    fn uint(&mut self, len: usize) -> Result<u64, String> {
        let bytes = self.take(len)?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Bytes whose length stands before them, in `width` bytes.
    fn counted(&mut self, width: usize) -> Result<&'a [u8], String> {
        let len = self.uint(width)?;
        self.take(usize::try_from(len).map_err(|_| format!("{len} bytes are announced"))?)
    }

    fn text(&mut self, width: usize) -> Result<String, String> {
        let bytes = self.counted(width)?.to_vec();
        String::from_utf8(bytes).map_err(|_| "its text is not UTF-8".into())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("a line has no end")?;
        let line = String::from_utf8_lossy(self.take(end + 1)?);
        Ok(line.trim_end().to_string())
    }
}

/// The state of a pickle that is being read.
#[derive(Default)]
struct Machine {
    values: Vec<Value>,
    stack: Vec<Id>,
    /// The stack's height at each mark that is open.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl Machine {
    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// The floor below which nothing may be popped: what lies under the last mark.
    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(|| "its stack is empty".into()),
            false => Err("its stack is empty".into()),
        }
    }

    fn last(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "its stack is empty".into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("no mark is open")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, len: usize) -> Result<(), String> {
        let mut items = (0..len).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), String> {
        let (pairs, rest) = items.as_chunks::<2>();
        let last = self.last()?;
        match &mut self.values[last] {
            Value::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            // The items of an object of another class; it is no dict of tensors.
            Value::Call { .. } => Ok(()),
            _ => Err("items are set on what is no dict".into()),
        }
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let last = self.last()?;
        match &mut self.values[last] {
            Value::List(list) => list.extend(items),
            Value::Call { .. } => {}
            _ => return Err("items are appended to what is no list".into()),
        }
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let is_dict = matches!(&self.values[callable], Value::Global(name)
            if name == "collections.OrderedDict" || name == "collections.defaultdict");
        self.push(match is_dict {
            true => Value::Dict(Vec::new()),
            false => Value::Call { callable, arguments },
        });
        Ok(())
    }

    fn memorize(&mut self, key: u64) -> Result<(), String> {
        let last = self.last()?;
        self.memo.insert(key, last);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), String> {
        let id = self.memo.get(&key).ok_or_else(|| format!("nothing was stored under {key}"))?;
        self.stack.push(*id);
        Ok(())
    }
}

/// Carries out one opcode; true after the last one.
fn step(machine: &mut Machine, reader: &mut Reader<'_>) -> Result<bool, String> {
    match reader.take(1)?[0] {
        // PROTO and FRAME say how the rest is packed, which this doesn't need.
        0x80 => drop(reader.uint(1)?),
        0x95 => drop(reader.uint(8)?),
        b'.' => return Ok(true),
        b'(' => machine.marks.push(machine.stack.len()),
        b'0' => drop(machine.pop()?),
        b'N' => machine.push(Value::Other),
        0x88 => machine.push(Value::Bool(true)),
        0x89 => machine.push(Value::Bool(false)),
        b'G' => {
            reader.take(8)?;
            machine.push(Value::Other);
        }
        b'K' => {
            let value = reader.uint(1)?;
            machine.push(Value::Int(value as i64));
        }
        b'M' => {
            let value = reader.uint(2)?;
            machine.push(Value::Int(value as i64));
        }
        b'J' => {
            let value = reader.uint(4)?;
            machine.push(Value::Int(i64::from(value as u32 as i32)));
        }
        // LONG1: an integer of any length; one that i64 can't hold is no size of a tensor.
        0x8a => {
            let bytes = reader.counted(1)?;
            machine.push(match bytes.len() {
                0..=8 => Value::Int(long(bytes)),
                _ => Value::Other,
            });
        }
        b'X' => {
            let text = reader.text(4)?;
            machine.push(Value::Text(text));
        }
        0x8c => {
            let text = reader.text(1)?;
            machine.push(Value::Text(text));
        }
        b'B' => {
            reader.counted(4)?;
            machine.push(Value::Other);
        }
        b'C' => {
            reader.counted(1)?;
            machine.push(Value::Other);
        }
        b'c' => {
            let (module, name) = (reader.line()?, reader.line()?);
            machine.push(Value::Global(format!("{module}.{name}")));
        }
        0x93 => {
            let (name, module) = (machine.pop()?, machine.pop()?);
            let (Value::Text(module), Value::Text(name)) =
                (&machine.values[module], &machine.values[name])
            else {
                return Err("a class has no name".into());
            };
            let global = Value::Global(format!("{module}.{name}"));
            machine.push(global);
        }
        b')' => machine.tuple(0)?,
        0x85 => machine.tuple(1)?,
        0x86 => machine.tuple(2)?,
        0x87 => machine.tuple(3)?,
        b't' => {
            let items = machine.pop_to_mark()?;
            machine.push(Value::Tuple(items));
        }
        b']' => machine.push(Value::List(Vec::new())),
        b'a' => {
            let item = machine.pop()?;
            machine.append(&[item])?;
        }
        b'e' => {
            let items = machine.pop_to_mark()?;
            machine.append(&items)?;
        }
        b'}' => machine.push(Value::Dict(Vec::new())),
        b's' => {
            let (value, key) = (machine.pop()?, machine.pop()?);
            machine.set_items(&[key, value])?;
        }
        b'u' => {
            let items = machine.pop_to_mark()?;
            machine.set_items(&items)?;
        }
        // EMPTY_SET and ADDITEMS: no set holds tensors by name.
        0x8f => machine.push(Value::List(Vec::new())),
        0x90 => {
            let items = machine.pop_to_mark()?;
            machine.append(&items)?;
        }
        b'R' | 0x81 => machine.call()?,
        // BUILD: attributes of an object, such as `_metadata` of a state dict, which hold no weights of it.
        b'b' => drop(machine.pop()?),
        b'Q' => {
            let description = machine.pop()?;
            machine.push(Value::Persistent(description));
        }
        b'q' => {
            let key = reader.uint(1)?;
            machine.memorize(key)?;
        }
        b'r' => {
            let key = reader.uint(4)?;
            machine.memorize(key)?;
        }
        0x94 => machine.memorize(machine.memo.len() as u64)?,
        b'h' => {
            let key = reader.uint(1)?;
            machine.recall(key)?;
        }
        b'j' => {
            let key = reader.uint(4)?;
            machine.recall(key)?;
        }
        code => {
            return Err(format!(
                "opcode {code:#04x} is none that PyTorch writes by default; save the file anew with torch.save(state_dict, FILE)"
            ));
        }
    }
    Ok(false)
}

/// A signed little-endian integer of at most 8 bytes.
fn long(bytes: &[u8]) -> i64 {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let start = if negative { -1 } else { 0 };
    bytes.iter().rev().fold(start, |value, byte| value << 8 | i64::from(*byte))
}
