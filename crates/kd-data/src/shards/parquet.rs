//! Pictures in Parquet files as the hubs have them: a column `image` with the bytes of a picture file in each row, a column `label` with the
//! number of its class, and the classes' names in the file's key `huggingface`.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;
use serde_json::Value;

use super::index::{Entry, Index};
use super::unpacked::{Unpacked, aside};
use crate::folder::MAX_CLASSES;
use crate::images::MAX_BYTES;
use crate::source::NO_LABEL;
use crate::{Error, Result};

/// What is wrong with a file: what was found, and what was expected; or that its pictures can't be written aside.
enum Wrong {
    Found(String, &'static str),
    Other(Error),
}

const A_FILE: &str = "a whole Parquet file";
const AN_IMAGE: &str =
    "one column of pictures: a group `image` with the bytes of each as `image.bytes`";
const A_LABEL: &str = "a column `label` of whole numbers with the class of each picture";

/// What is done with each picture: its class, and its file's bytes.
type Each<'a> = &'a mut dyn FnMut(Option<u32>, &[u8]) -> std::result::Result<(), Wrong>;

/// Rows that are read at a time.
const AT_A_TIME: usize = 16;

/// Where a file has its pictures and labels.
struct Columns {
    image: usize,
    /// `None` where the pictures have no labels.
    label: Option<usize>,
}

/// The pictures of the Parquet file at `path`, whose bytes are written behind what lies in `shared`, as those of packed shards are.
///
/// # Errors
/// When the file is none, is damaged, has no pictures and labels of this form, or there is no room for its pictures.
pub(super) fn look_through(
    path: &Path,
    file: File,
    shared: &mut Option<Arc<Mutex<File>>>,
) -> Result<(Index, Unpacked)> {
    let mut index = Index::default();
    let unpacked = aside(path, shared, |write| {
        let mut offset = 0;
        let names = read(file, &mut |label, bytes| {
            let row = index.entries.len();
            if bytes.len() as u64 > MAX_BYTES {
                let found = format!("a picture of {} bytes in row {row}", bytes.len());
                return Err(Wrong::Found(found, "a picture file of at most 256 MiB"));
            }
            let label = match label {
                Some(label) if (label as usize) < MAX_CLASSES => {
                    index.number.get_or_insert_with(|| format!("row {row}"));
                    label
                }
                Some(label) => {
                    let found = format!("the label {label} in row {row}");
                    return Err(Wrong::Found(found, "a class's number below 65536"));
                }
                None => {
                    index.unlabelled.get_or_insert_with(|| format!("row {row}"));
                    NO_LABEL
                }
            };
            write(bytes).map_err(Wrong::Other)?;
            let (bytes, number) = (bytes.len() as u32, row as u32);
            index.entries.push(Entry { offset, bytes, head: 0, label, number });
            offset += u64::from(bytes);
            Ok(())
        });
        index.class_names = names.map_err(|wrong| match wrong {
            Wrong::Other(error) => error,
            Wrong::Found(found, expected) => Error::Malformed {
                path: path.into(),
                offset: 0,
                found,
                expected: expected.into(),
                advice: "fetch or write the file again".into(),
            },
        })?;
        Ok(())
    })?;
    index.entries.shrink_to_fit();
    Ok((index, unpacked))
}

/// Calls `each` with every picture's file and its class, from the first row to the last; the classes' names, where the file says them.
///
/// # Errors
/// When the file is none, is damaged, or has no such columns, and those of `each`.
fn read(file: File, each: Each<'_>) -> std::result::Result<Option<Vec<String>>, Wrong> {
    // A damaged file must not end the process, whatever the reader makes of it.
    catch_unwind(AssertUnwindSafe(|| read_all(file, each)))
        .unwrap_or_else(|_| Err(Wrong::Found("what its reader fails at".into(), A_FILE)))
}

fn read_all(file: File, each: Each<'_>) -> std::result::Result<Option<Vec<String>>, Wrong> {
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let about = reader.metadata().file_metadata();
    let features = about.key_value_metadata().and_then(|entries| {
        let text = entries.iter().find(|entry| entry.key == "huggingface")?.value.as_ref()?;
        serde_json::from_str::<Value>(text).ok()?.pointer("/info/features").cloned()
    });
    let columns = columns(about.schema_descr(), features.as_ref())?;
    let mut row = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(damaged)?;
        let rows = group.metadata().num_rows() as usize;
        let labels = match columns.label {
            Some(column) => Some(labels(&*group, column, rows)?),
            None => None,
        };
        let ColumnReader::ByteArrayColumnReader(mut images) =
            group.get_column_reader(columns.image).map_err(damaged)?
        else {
            return Err(Wrong::Found("a column of pictures that are no bytes".into(), AN_IMAGE));
        };
        let deepest =
            reader.metadata().file_metadata().schema_descr().column(columns.image).max_def_level();
        let mut labels = labels.map(Vec::into_iter);
        loop {
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let (count, ..) = images
                .read_records(AT_A_TIME, Some(&mut levels), None, &mut values)
                .map_err(damaged)?;
            if count == 0 {
                break;
            }
            let mut values = values.iter();
            for place in 0..count {
                let is_there = deepest == 0 || levels.get(place) == Some(&deepest);
                let bytes = values.next().filter(|_| is_there).ok_or_else(|| {
                    Wrong::Found(
                        format!("no bytes of a picture in row {row}"),
                        "the picture's file itself in each row",
                    )
                })?;
                let label = match &mut labels {
                    Some(labels) => labels.next().ok_or_else(|| {
                        Wrong::Found(format!("more pictures than labels at row {row}"), A_FILE)
                    })?,
                    None => None,
                };
                each(label, bytes.data())?;
                row += 1;
            }
        }
        if labels.is_some_and(|mut labels| labels.next().is_some()) {
            return Err(Wrong::Found(format!("fewer pictures than labels at row {row}"), A_FILE));
        }
    }
    let names = |column: usize| {
        let name = about.schema_descr().column(column).path().parts().first()?.clone();
        let names = features.as_ref()?.get(&name)?.get("names")?;
        serde_json::from_value::<Vec<String>>(names.clone()).ok()
    };
    Ok(columns.label.and_then(names))
}

fn damaged(error: ParquetError) -> Wrong {
    Wrong::Found(error.to_string(), A_FILE)
}

/// The columns of pictures and of labels.
fn columns(
    schema: &SchemaDescriptor,
    features: Option<&Value>,
) -> std::result::Result<Columns, Wrong> {
    let paths: Vec<&[String]> =
        schema.columns().iter().map(|column| column.path().parts()).collect();
    let listed = || {
        let names: Vec<String> = paths.iter().map(|path| path.join(".")).collect();
        format!("the columns {}", names.join(", "))
    };
    let images: Vec<usize> = (0..paths.len())
        .filter(|&at| matches!(paths[at], [_, bytes] if bytes == "bytes"))
        .collect();
    let named = images.iter().find(|&&at| paths[at][0] == "image");
    let image = match (named, &images[..]) {
        (Some(image), _) | (None, [image]) => *image,
        _ => return Err(Wrong::Found(listed(), AN_IMAGE)),
    };
    let is_class = |at: usize| {
        let kind = features.and_then(|of| of.get(&paths[at][0])?.get("_type")?.as_str());
        kind == Some("ClassLabel")
    };
    let single = |at: &usize| paths[*at].len() == 1;
    let called = |name: &str| (0..paths.len()).filter(single).find(|&at| paths[at][0] == name);
    let classes: Vec<usize> = (0..paths.len()).filter(single).filter(|&at| is_class(at)).collect();
    let label = called("label").or_else(|| called("fine_label")).or(match classes[..] {
        [one] => Some(one),
        _ => called("labels"),
    });
    match (label, classes.len()) {
        (None, 2..) => Err(Wrong::Found(listed(), A_LABEL)),
        _ => Ok(Columns { image, label }),
    }
}

/// The labels of a group of rows; a null and a number below 0 are none.
fn labels(
    group: &dyn RowGroupReader,
    column: usize,
    rows: usize,
) -> std::result::Result<Vec<Option<u32>>, Wrong> {
    let found = match group.get_column_reader(column).map_err(damaged)? {
        ColumnReader::Int64ColumnReader(reader) => numbers(reader, rows, |value| value)?,
        ColumnReader::Int32ColumnReader(reader) => numbers(reader, rows, i64::from)?,
        _ => return Err(Wrong::Found("labels that are no whole numbers".into(), A_LABEL)),
    };
    found
        .into_iter()
        .map(|value| match value {
            Some(value) if value >= 0 => u32::try_from(value)
                .map(Some)
                .map_err(|_| Wrong::Found(format!("the label {value}"), "the number of a class")),
            _ => Ok(None),
        })
        .collect()
}

fn numbers<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
    number: impl Fn(T::T) -> i64,
) -> std::result::Result<Vec<Option<i64>>, Wrong> {
    let mut all = Vec::new();
    loop {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let (count, ..) =
            reader.read_records(1024, Some(&mut levels), None, &mut values).map_err(damaged)?;
        if count == 0 {
            break;
        }
        let mut values = values.into_iter();
        // Of a column that must have a value there are no levels.
        let is_there = |place: usize| levels.get(place).is_none_or(|level| *level > 0);
        all.extend((0..count).map(|place| match is_there(place) {
            true => values.next().map(&number),
            false => None,
        }));
    }
    match all.len() == rows {
        true => Ok(all),
        false => Err(Wrong::Found(format!("{} labels for {rows} rows", all.len()), A_FILE)),
    }
}
