//! Where tensors live.

use candle_core::Device;

use crate::Result;
use crate::error::other;

/// What `--device` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best that this build and machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl DeviceChoice {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Cpu, Self::Cuda];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|device| device.name() == name);
        let known = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("there is no device {name:?}; expected one of {known}"))
    }
}

/// The device to train on.
///
/// # Errors
/// When it is not at hand.
pub fn choose(choice: DeviceChoice) -> Result<Device> {
    const BUILT: bool = cfg!(feature = "cuda");
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto if !BUILT => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(gpu().unwrap_or_else(|said| {
            tracing::info!("no GPU that can be used, computing on the CPU: {said}");
            Device::Cpu
        })),
        DeviceChoice::Cuda => {
            if !BUILT {
                return Err(other!(
                    "this kd was built without CUDA and computes on the CPU: use --device cpu, or build it with `cargo build --release -p kd-run --features cuda`, which needs NVIDIA's CUDA toolkit"
                ));
            }
            gpu().map_err(|said| {
                other!(
                    "no NVIDIA GPU can be used; the driver says: {said}; `nvidia-smi` shows what it knows of, and --device cpu needs none"
                )
            })
        }
    }
}

/// The first GPU, or what the driver says.
fn gpu() -> Result<Device, String> {
    // With RUST_BACKTRACE a backtrace follows in the next lines.
    let said =
        |error: candle_core::Error| error.to_string().lines().next().unwrap_or("").to_owned();
    let device = Device::new_cuda(0).map_err(said)?;
    #[cfg(feature = "cuda")]
    {
        kd_ops::cuda::keep_freed_memory(&device).map_err(said)?;
        // SAFETY: this device has one stream, its thread's own, and nothing here makes it another. cudarc would make two events
        // with each tensor, 164 in a step of the tutorial's student, and look at none of them before there are two streams.
        unsafe { kd_ops::cuda::use_one_thread(&device) };
    }
    Ok(device)
}

/// The name in summaries.
pub fn name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// The processor's name and number of cores, for people who compare times.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    let cores = format!("{cores} core{}", if cores == 1 { "" } else { "s" });
    match model {
        Some(model) => format!("{model}, {cores}"),
        None => cores,
    }
}
