//! Graphs that planned passes are tested with: small ones of the named families, and ones that have everything a graph may have.

use kd_models::Graph;
use kd_models::families::{
    CifarResNetConfig, ResNetConfig, TutorialConfig, cifar_resnet, resnet as imagenet_resnet,
    tutorial,
};
use kd_models::graph::{Conv, GraphBuilder, WeightInit};

pub(crate) fn resnet(blocks: usize, input: [usize; 3]) -> Graph {
    cifar_resnet(&CifarResNetConfig { input, ..CifarResNetConfig::new("resnet", 10, blocks) })
        .unwrap()
}

/// ResNet-18's or ResNet-50's stages with a block each.
pub(crate) fn large(bottleneck: bool, input: [usize; 3]) -> Graph {
    let (name, blocks) = ("large".into(), [1; 4]);
    imagenet_resnet(&ResNetConfig { name, input, classes: 10, blocks, bottleneck }).unwrap()
}

/// Everything that a graph may have, in forms that the named networks don't.
pub(crate) fn odd() -> Graph {
    let mut g = GraphBuilder::new("odd", [3, 13, 11]).unwrap();
    let conv = |outputs, kernel, stride, padding, bias| Conv {
        stride,
        padding,
        bias,
        init: WeightInit::PyTorch,
        ..Conv::new(outputs, kernel)
    };
    // A batch normalisation of the images, and images in a sum.
    let images = g.images();
    let x = g.batch_norm("bn_images", images).unwrap();
    let twice = g.sum("twice", images, images).unwrap();
    let x = g.sum("images_sum", x, twice).unwrap();
    g.place("images_sum", x).unwrap();
    // 5 channels are no whole vector; a bias before a normalisation; a ReLU before a max-pool.
    let x = g.conv("conv1", x, conv(5, 3, 1, 1, true)).unwrap();
    g.place("conv1", x).unwrap();
    let x = g.batch_norm("bn1", x).unwrap();
    g.place("bn1", x).unwrap();
    let x = g.relu("relu1", x).unwrap();
    let x = g.max_pool("pool1", x, 3, 2).unwrap();
    g.place("pool1", x).unwrap();
    // A block that normalises before it convolves, read by its shortcut, too.
    let y = g.batch_norm("pre.bn", x).unwrap();
    let y = g.relu("pre.relu", y).unwrap();
    let y = g.conv("pre.conv", y, conv(5, 3, 1, 1, false)).unwrap();
    let x = g.sum("pre.sum", y, x).unwrap();
    g.place("pre.sum", x).unwrap();
    // A shortcut with a convolution and a normalisation of its own; a sum of a value with itself.
    let y = g.conv("down.conv1", x, conv(18, 3, 2, 1, false)).unwrap();
    let y = g.batch_norm("down.bn1", y).unwrap();
    let y = g.relu("down.relu1", y).unwrap();
    let y = g.conv("down.conv2", y, conv(18, 3, 1, 1, false)).unwrap();
    let y = g.batch_norm("down.bn2", y).unwrap();
    g.place("down.bn2", y).unwrap();
    let z = g.conv("down.short", x, conv(18, 1, 2, 0, false)).unwrap();
    let z = g.batch_norm("down.bns", z).unwrap();
    let x = g.sum("down.sum", y, z).unwrap();
    let x = g.relu("down.relu", x).unwrap();
    let x = g.sum("double", x, x).unwrap();
    // A residual whose convolution reads and gives the same sum; dropout of a map; a ReLU of a ReLU.
    let y = g.conv("direct", x, conv(18, 3, 1, 1, true)).unwrap();
    let y = g.batch_norm("direct.bn", y).unwrap();
    let x = g.sum("direct.sum", y, x).unwrap();
    let x = g.relu("direct.relu", x).unwrap();
    let x = g.relu("direct.again", x).unwrap();
    let x = g.dropout("drop_map", x, 0.3).unwrap();
    g.place("drop_map", x).unwrap();
    // The convolution's ReLU is read by two layers.
    let y = g.conv("last", x, conv(7, 2, 1, 0, true)).unwrap();
    let y = g.relu("last.relu", y).unwrap();
    g.place("last.relu", y).unwrap();
    let flat = g.flatten("flat", y).unwrap();
    g.place("flat", flat).unwrap();
    let mean = g.global_average_pool("mean", y).unwrap();
    let a = g.linear("a", flat, 9).unwrap();
    let a = g.relu("a.relu", a).unwrap();
    g.place("a.relu", a).unwrap();
    let b = g.linear("b", mean, 9).unwrap();
    let x = g.sum("ab", a, b).unwrap();
    let x = g.dropout("drop", x, 0.2).unwrap();
    let x = g.linear("head", x, 6).unwrap();
    g.finish(x).unwrap()
}

/// A sum whose input is read by another layer after the convolution on its other side: the input's gradient changes before
/// that convolution has read the sum's.
pub(crate) fn crossed() -> Graph {
    let mut g = GraphBuilder::new("crossed", [3, 9, 8]).unwrap();
    let conv = Conv { padding: 1, bias: false, ..Conv::new(8, 3) };
    let images = g.images();
    let x = g.conv("stem", images, conv).unwrap();
    let x = g.relu("stem.relu", x).unwrap();
    let a = g.conv("a", x, conv).unwrap();
    let a = g.batch_norm("a.bn", a).unwrap();
    let b = g.conv("b", x, conv).unwrap();
    let sum = g.sum("a.sum", a, x).unwrap();
    let sum = g.sum("sum", sum, b).unwrap();
    g.place("sum", sum).unwrap();
    let mean = g.global_average_pool("mean", sum).unwrap();
    let x = g.linear("head", mean, 4).unwrap();
    g.finish(x).unwrap()
}

/// What mobile networks are made of, in forms that the named ones don't have either: depthwise convolutions of the images, with
/// a bias, uneven zeros and of every stride; ReLU6 before a max-pool, of a sum and of a ReLU; a normalised value that a 1x1
/// convolution reads without an activation.
pub(crate) fn mobile() -> Graph {
    let mut g = GraphBuilder::new("mobile", [3, 14, 11]).unwrap();
    let conv =
        |outputs, kernel| Conv { padding: kernel / 2, bias: false, ..Conv::new(outputs, kernel) };
    let depthwise = |channels, kernel| Conv { groups: channels, ..conv(channels, kernel) };
    let images = g.images();
    let x = g.conv("images_dw", images, Conv { bias: true, ..depthwise(3, 3) }).unwrap();
    let x = g.relu6("images_dw.act", x).unwrap();
    let y = g.conv("images_pw", images, conv(3, 1)).unwrap();
    let x = g.sum("stem", x, y).unwrap();
    g.place("stem", x).unwrap();
    let x = g.conv("expand", x, conv(20, 1)).unwrap();
    let x = g.batch_norm("expand.bn", x).unwrap();
    g.place("expand.bn", x).unwrap();
    let x = g.relu6("expand.act", x).unwrap();
    let same = Conv { padding: 0, same_padding: true, stride: 2, ..depthwise(20, 5) };
    let x = g.conv("dw", x, same).unwrap();
    g.place("dw", x).unwrap();
    let x = g.batch_norm("dw.bn", x).unwrap();
    let x = g.relu6("dw.act", x).unwrap();
    let x = g.conv("project", x, Conv { bias: true, ..conv(9, 1) }).unwrap();
    let x = g.batch_norm("project.bn", x).unwrap();
    g.place("project.bn", x).unwrap();
    let y = g.conv("wide", x, conv(33, 1)).unwrap();
    let y = g.batch_norm("wide.bn", y).unwrap();
    let y = g.relu6("wide.act", y).unwrap();
    let y = g.conv("wide.dw", y, depthwise(33, 3)).unwrap();
    let y = g.batch_norm("wide.dw.bn", y).unwrap();
    let y = g.relu("wide.dw.relu", y).unwrap();
    let y = g.relu6("wide.dw.act", y).unwrap();
    let y = g.conv("narrow", y, conv(9, 1)).unwrap();
    let y = g.batch_norm("narrow.bn", y).unwrap();
    let x = g.sum("block", y, x).unwrap();
    let x = g.relu6("block.act", x).unwrap();
    g.place("block", x).unwrap();
    // Uneven zeros of a convolution of all channels, and a normalised value behind a max-pool.
    let x = g.conv("conv", x, Conv { padding: 0, same_padding: true, stride: 2, ..conv(11, 3) });
    let x = g.batch_norm("conv.bn", x.unwrap()).unwrap();
    let x = g.relu6("conv.act", x).unwrap();
    let x = g.max_pool("pool", x, 2, 1).unwrap();
    let x = g.conv("last", x, Conv { stride: 3, padding: 2, ..depthwise(11, 4) }).unwrap();
    let x = g.global_average_pool("mean", x).unwrap();
    let x = g.relu6("mean.act", x).unwrap();
    let x = g.linear("head", x, 6).unwrap();
    g.finish(x).unwrap()
}

pub(crate) fn graphs() -> Vec<(&'static str, Graph)> {
    vec![
        (
            "teacher",
            tutorial(&TutorialConfig { input: [3, 12, 12], ..TutorialConfig::teacher() }).unwrap(),
        ),
        ("student", tutorial(&TutorialConfig::student()).unwrap()),
        ("resnet8", resnet(1, [3, 16, 16])),
        ("resnet14 of 11x13", resnet(2, [3, 11, 13])),
        ("odd", odd()),
        ("crossed", crossed()),
        ("mobile", mobile()),
    ]
}
