//! The archives as their authors publish them: <https://www.cs.toronto.edu/~kriz/cifar.html>.

use clap::ValueEnum;

/// A data set that can be downloaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Dataset {
    Cifar10,
    Cifar100,
}

/// A published archive and what is in it.
pub struct Archive {
    /// `cifar10`, as on the command line.
    pub name: &'static str,
    /// `CIFAR-10`, as one writes it.
    pub title: &'static str,
    pub url: &'static str,
    /// Name of the archive's file.
    pub file: &'static str,
    pub bytes: u64,
    pub md5: &'static str,
    /// The one folder in the archive.
    pub folder: &'static str,
    pub files: &'static [File],
}

/// A file of an archive.
pub struct File {
    pub name: &'static str,
    pub size: Size,
}

pub enum Size {
    /// Batches: records of one length, all of them needed.
    Exactly(u64),
    /// Names of classes: needed, of no fixed length.
    UpTo(u64),
    /// Taken along if it is there.
    OptionalUpTo(u64),
}

const fn batch(name: &'static str, bytes: u64) -> File {
    File { name, size: Size::Exactly(bytes) }
}

const fn text(name: &'static str) -> File {
    File { name, size: Size::UpTo(64 << 10) }
}

const fn optional(name: &'static str) -> File {
    File { name, size: Size::OptionalUpTo(64 << 10) }
}

/// One label and 3 x 32 x 32 bytes, 10,000 times.
const CIFAR10_BATCH: u64 = 10_000 * (1 + 3072);
/// A coarse and a fine label and 3 x 32 x 32 bytes.
const CIFAR100_RECORD: u64 = 2 + 3072;

static CIFAR10: Archive = Archive {
    name: "cifar10",
    title: "CIFAR-10",
    url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    file: "cifar-10-binary.tar.gz",
    bytes: 170_052_171,
    md5: "c32a1d4ab5d03f1284b67883e8d87530",
    folder: "cifar-10-batches-bin",
    files: &[
        batch("data_batch_1.bin", CIFAR10_BATCH),
        batch("data_batch_2.bin", CIFAR10_BATCH),
        batch("data_batch_3.bin", CIFAR10_BATCH),
        batch("data_batch_4.bin", CIFAR10_BATCH),
        batch("data_batch_5.bin", CIFAR10_BATCH),
        batch("test_batch.bin", CIFAR10_BATCH),
        text("batches.meta.txt"),
        optional("readme.html"),
    ],
};

static CIFAR100: Archive = Archive {
    name: "cifar100",
    title: "CIFAR-100",
    url: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    file: "cifar-100-binary.tar.gz",
    bytes: 168_513_733,
    md5: "03b5dce01913d631647c71ecec9e9cb8",
    folder: "cifar-100-binary",
    files: &[
        batch("train.bin", 50_000 * CIFAR100_RECORD),
        batch("test.bin", 10_000 * CIFAR100_RECORD),
        text("coarse_label_names.txt"),
        text("fine_label_names.txt"),
        optional("readme.html"),
    ],
};

impl Dataset {
    pub fn archive(self) -> &'static Archive {
        match self {
            Dataset::Cifar10 => &CIFAR10,
            Dataset::Cifar100 => &CIFAR100,
        }
    }
}

impl Size {
    pub fn allows(&self, bytes: u64) -> bool {
        match *self {
            Size::Exactly(exact) => bytes == exact,
            Size::UpTo(most) | Size::OptionalUpTo(most) => bytes <= most,
        }
    }

    pub fn most(&self) -> u64 {
        match *self {
            Size::Exactly(most) | Size::UpTo(most) | Size::OptionalUpTo(most) => most,
        }
    }

    pub fn needed(&self) -> bool {
        !matches!(self, Size::OptionalUpTo(_))
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Size::Exactly(bytes) => write!(f, "{bytes} bytes"),
            Size::UpTo(most) | Size::OptionalUpTo(most) => write!(f, "at most {most} bytes"),
        }
    }
}
