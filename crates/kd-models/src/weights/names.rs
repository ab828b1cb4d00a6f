//! Names that other code bases give the layers of networks made of inverted residuals: EfficientNet-PyTorch (lukemelas), and
//! timm where a network here has torchvision's names.

use std::collections::BTreeMap;

use crate::graph::{Graph, Op};

/// Another code base's names of a network's layers.
pub(super) struct OtherNames {
    /// Whose names these are, for a note.
    pub(super) of: &'static str,
    /// The other name of the layer that has the network's first weights.
    pub(super) first: String,
    /// The network's names by the other ones.
    pub(super) layers: BTreeMap<String, String>,
}

/// A convolution and its batch normalisation.
struct Pair<'a> {
    conv: &'a str,
    norm: &'a str,
    /// Whether each channel is convolved by itself.
    depthwise: bool,
}

/// An inverted residual: the convolution to more channels, which the first one lacks, the depthwise one, and that to fewer.
struct Block<'a> {
    expand: Option<Pair<'a>>,
    depthwise: Pair<'a>,
    project: Pair<'a>,
}

/// A network of a convolution, inverted residuals, a convolution and a linear layer.
struct Inverted<'a> {
    stem: Pair<'a>,
    blocks: Vec<Block<'a>>,
    last: Pair<'a>,
    head: &'a str,
}

/// The blocks of MobileNetV2's stages, as timm counts them (`_gen_mobilenet_v2` in timm/models/efficientnet.py).
const MOBILENET_V2: [usize; 7] = [1, 2, 3, 4, 3, 3, 1];

/// The names that a file of the network may have in place of its own.
pub(super) fn other_names(graph: &Graph) -> Vec<OtherNames> {
    let Some(network) = Inverted::of(graph) else { return Vec::new() };
    let mut all = vec![lukemelas(&network)];
    let own_are_timms = network.stem.conv == "conv_stem";
    if !own_are_timms && network.blocks.len() == MOBILENET_V2.iter().sum::<usize>() {
        all.push(timm(&network, &MOBILENET_V2));
    }
    all
}

impl<'a> Inverted<'a> {
    /// The layers of such a network; `None` for another one.
    fn of(graph: &'a Graph) -> Option<Self> {
        let mut layers = graph.nodes().iter().filter(|node| !node.parameters.is_empty()).peekable();
        let mut pairs = Vec::new();
        while let Some(node) = layers.next_if(|node| matches!(node.op, Op::Conv(_))) {
            let Op::Conv(conv) = node.op else { return None };
            let norm = layers.next_if(|node| matches!(node.op, Op::BatchNorm(_)))?;
            let depthwise = conv.groups > 1 && conv.groups == conv.outputs;
            pairs.push(Pair { conv: &node.name, norm: &norm.name, depthwise });
        }
        let head = &graph.head().name;
        if layers.next()?.name != *head || layers.next().is_some() {
            return None;
        }
        let last = pairs.pop()?;
        let mut pairs = pairs.into_iter();
        let stem = pairs.next().filter(|stem| !stem.depthwise)?;
        let mut blocks = Vec::new();
        while let Some(first) = pairs.next() {
            let (expand, depthwise) = match first.depthwise {
                true => (None, first),
                false => (Some(first), pairs.next().filter(|pair| pair.depthwise)?),
            };
            let project = pairs.next().filter(|pair| !pair.depthwise)?;
            blocks.push(Block { expand, depthwise, project });
        }
        (!blocks.is_empty()).then_some(Self { stem, blocks, last, head })
    }
}

/// Collects pairs of names.
#[derive(Default)]
struct Renamed(BTreeMap<String, String>);

impl Renamed {
    fn pair(&mut self, pair: &Pair<'_>, conv: String, norm: String) {
        self.0.insert(conv, pair.conv.into());
        self.0.insert(norm, pair.norm.into());
    }
}

/// The names of `efficientnet_pytorch/model.py` of EfficientNet-PyTorch; blocks are counted through, and a block without its first
/// convolution has no `_bn0`.
fn lukemelas(network: &Inverted<'_>) -> OtherNames {
    let mut names = Renamed::default();
    names.pair(&network.stem, "_conv_stem".into(), "_bn0".into());
    for (index, block) in network.blocks.iter().enumerate() {
        let at = |name: &str| format!("_blocks.{index}.{name}");
        if let Some(expand) = &block.expand {
            names.pair(expand, at("_expand_conv"), at("_bn0"));
        }
        names.pair(&block.depthwise, at("_depthwise_conv"), at("_bn1"));
        names.pair(&block.project, at("_project_conv"), at("_bn2"));
    }
    names.pair(&network.last, "_conv_head".into(), "_bn1".into());
    names.0.insert("_fc".into(), network.head.into());
    OtherNames { of: "EfficientNet-PyTorch", first: "_conv_stem".into(), layers: names.0 }
}

/// The names of timm's `EfficientNet` (timm/models/efficientnet.py, _efficientnet_blocks.py), with so many blocks in each stage.
fn timm(network: &Inverted<'_>, stages: &[usize]) -> OtherNames {
    let mut names = Renamed::default();
    names.pair(&network.stem, "conv_stem".into(), "bn1".into());
    let places = stages.iter().enumerate().flat_map(|(stage, &blocks)| {
        (0..blocks).map(move |block| format!("blocks.{stage}.{block}"))
    });
    for (block, place) in network.blocks.iter().zip(places) {
        let at = |name: &str| format!("{place}.{name}");
        match &block.expand {
            Some(expand) => {
                names.pair(expand, at("conv_pw"), at("bn1"));
                names.pair(&block.depthwise, at("conv_dw"), at("bn2"));
                names.pair(&block.project, at("conv_pwl"), at("bn3"));
            }
            None => {
                names.pair(&block.depthwise, at("conv_dw"), at("bn1"));
                names.pair(&block.project, at("conv_pw"), at("bn2"));
            }
        }
    }
    names.pair(&network.last, "conv_head".into(), "bn2".into());
    names.0.insert("classifier".into(), network.head.into());
    OtherNames { of: "timm", first: "conv_stem".into(), layers: names.0 }
}
