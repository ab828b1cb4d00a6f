//! Which device computes, and what it can do.

use candle_core::Device;
use kd_record::{Compile, DeviceChoice, Precision};

use crate::Result;
use crate::error::other;

/// The device to compute on; a GPU is set up as training needs it.
///
/// # Errors
/// When a GPU is asked for and this build or this machine has none.
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

/// Checks that a device has the arithmetic, and can take steps in this way.
///
/// # Errors
/// When it is no NVIDIA GPU, and either is for one alone.
pub fn check(device: &Device, precision: Precision, compile: Compile) -> Result<()> {
    if device.is_cuda() {
        return Ok(());
    }
    if precision != Precision::F32 {
        return Err(other!(
            "precision {precision} is for NVIDIA GPUs, and this run computes on the CPU: use --device cuda, or precision f32"
        ));
    }
    if compile == Compile::Graph {
        return Err(other!(
            "CUDA graphs are for NVIDIA GPUs, and this run computes on the CPU: use --device cuda, or leave --compile out"
        ));
    }
    Ok(())
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

/// The device's name in records: `cpu`, `cuda` or `metal`.
pub fn name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// The processor's name and number of cores, for people who compare times.
pub fn machine() -> String {
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
