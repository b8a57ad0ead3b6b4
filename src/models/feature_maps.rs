//! What convolutional encoders share: a stream of feature maps, and layers on it.

use super::tokens::{TapGroup, View};
use crate::error::{Error, Result};
use crate::ir::{ConvGeometry, Epilogue, FeatureMap, ValueId, ops};
use crate::nn::layers::{Net, range};

/// Feature maps of all views as one stream of rows.
#[derive(Clone, Debug)]
pub(super) struct MapStream {
    /// `[sum of count * height * width, C]`
    pub x: ValueId,
    /// One entry per view.
    pub maps: Vec<FeatureMap>,
}

impl MapStream {
    /// The pixels of all views, `[sum of H * W, 3]`; hidden patches of a masked view are 0.
    pub fn pixels(net: &mut Net<'_, '_>, path: &str, views: &[View]) -> Result<Self> {
        let masked = views.iter().position(|v| v.keep.is_some());
        let mut images: Vec<ValueId> = views.iter().map(|v| v.image).collect();
        images.extend(views.iter().find_map(|v| v.keep.map(|(id, _)| id)));
        let dtype = net.weights.compute();
        let x = net.push(path, ops::PixelRows { masked, dtype }, &images)?;
        let map = |v: &View| FeatureMap { count: v.count, height: v.size[0], width: v.size[1] };
        Ok(MapStream { x, maps: views.iter().map(map).collect() })
    }

    /// The same maps with other values.
    pub fn with(&self, x: ValueId) -> Self {
        MapStream { x, maps: self.maps.clone() }
    }

    /// `(images, rows per image)` of every view.
    pub fn lengths(&self) -> Vec<(usize, usize)> {
        self.maps.iter().map(|m| (m.count, m.positions())).collect()
    }

    /// First row of view `v`.
    fn start(&self, v: usize) -> usize {
        self.maps[..v].iter().map(FeatureMap::rows).sum()
    }

    /// A dense convolution; without `bias` the layer has none.
    pub fn conv(
        &self,
        net: &mut Net<'_, '_>,
        path: &str,
        (kernel, stride): (usize, usize),
        bias: bool,
    ) -> Result<Self> {
        let geometry = ConvGeometry { maps: self.maps.clone(), kernel, stride };
        let maps = geometry.outputs().collect();
        let (w, b) = weight_and_bias(net, path, bias)?;
        let x = if kernel == 1 && stride == 1 {
            // A 1x1 convolution on rows of channels is a linear layer.
            net.push(path, ops::Linear { epilogue: Epilogue::None }, &[self.x, w, b])?
        } else {
            net.push(path, ops::Conv2d { geometry, epilogue: Epilogue::None }, &[self.x, w, b])?
        };
        Ok(MapStream { x, maps })
    }

    /// A depthwise convolution.
    pub fn depthwise(
        &self,
        net: &mut Net<'_, '_>,
        path: &str,
        (kernel, stride): (usize, usize),
        bias: bool,
    ) -> Result<Self> {
        let geometry = ConvGeometry { maps: self.maps.clone(), kernel, stride };
        let maps = geometry.outputs().collect();
        let (w, b) = weight_and_bias(net, path, bias)?;
        let x = net.push(path, ops::DepthwiseConv2d { geometry, residual: false }, &[self.x, w, b])?;
        Ok(MapStream { x, maps })
    }

    /// Batch normalisation; in training every view has statistics of its own, as in a forward pass of its own.
    pub fn batch_norm(&self, net: &mut Net<'_, '_>, path: &str) -> Result<Self> {
        let groups = self.maps.iter().map(FeatureMap::rows).collect();
        Ok(self.with(net.batch_norm(path, self.x, groups)?))
    }

    /// The largest values of windows.
    pub fn max_pool(
        &self,
        net: &mut Net<'_, '_>,
        path: &str,
        (kernel, stride): (usize, usize),
    ) -> Result<Self> {
        let geometry = ConvGeometry { maps: self.maps.clone(), kernel, stride };
        let maps = geometry.outputs().collect();
        let x = net.push(path, ops::MaxPool2d { geometry }, &[self.x])?;
        Ok(MapStream { x, maps })
    }

    pub fn relu(&self, net: &mut Net<'_, '_>, path: &str) -> Result<Self> {
        Ok(self.with(net.push(path, ops::Relu, &[self.x])?))
    }

    /// The patch tokens of `group`; of a masked view those of its visible patches.
    pub fn tap_tokens(&self, net: &mut Net<'_, '_>, views: &[View], group: &TapGroup) -> Result<ValueId> {
        let runs = group
            .parts
            .iter()
            .map(|p| range(self.start(p.view), p.images * self.maps[p.view].positions()))
            .collect();
        let rows = net.select("encoder.tap", self.x, runs)?;
        let masked = group.parts.iter().filter_map(|p| views[p.view].keep.map(|keep| (p, keep.0))).next();
        match (masked, &group.parts[..]) {
            (None, _) => Ok(rows),
            (Some((p, keep)), [_]) if p.images == views[p.view].count => {
                let tokens = self.maps[p.view].positions();
                net.push("encoder.tap.visible", ops::GatherTokens { tokens }, &[rows, keep])
            }
            _ => Err(Error::invariant("model building", "a masked view's tokens are wanted by themselves")),
        }
    }

    /// The stream of the first `views` views.
    pub fn cut(&self, net: &mut Net<'_, '_>, path: &str, views: usize) -> Result<Self> {
        if views == self.maps.len() {
            return Ok(self.clone());
        }
        let x = net.select(path, self.x, vec![range(0, self.start(views))])?;
        Ok(MapStream { x, maps: self.maps[..views].to_vec() })
    }

    /// The mean over the positions of every image, `[images, C]`.
    pub fn pool(&self, net: &mut Net<'_, '_>, path: &str) -> Result<ValueId> {
        net.push(path, ops::GlobalAveragePool { images: self.lengths() }, &[self.x])
    }
}

fn weight_and_bias(net: &mut Net<'_, '_>, path: &str, bias: bool) -> Result<(ValueId, ValueId)> {
    let w = net.param(&format!("{path}.weight"))?;
    let name = format!("{path}.bias");
    if bias {
        return Ok((w, net.param(&name)?));
    }
    let dtype = net.weights.compute().accumulator();
    let shape = vec![net.graph.shape(w).dims()[0]];
    Ok((w, net.push(&name, ops::Fill { shape, value: 0.0, dtype }, &[])?))
}

/// Wider or deeper is a slip of the keyboard, and would overflow sizes further on.
const MAX_WIDTH: usize = 1 << 20;
const MAX_DEPTH: usize = 1024;

/// Checks that every value of `key.name` lies between `least` and the largest width.
pub(super) fn check_widths(key: &str, name: &str, values: &[usize], least: usize) -> Result<()> {
    check(key, name, values, least..=MAX_WIDTH)
}

/// Checks that the number of blocks of every stage, `key.name`, lies between `least` and the largest one.
pub(super) fn check_depths(key: &str, name: &str, values: &[usize], least: usize) -> Result<()> {
    check(key, name, values, least..=MAX_DEPTH)
}

fn check(key: &str, name: &str, values: &[usize], range: std::ops::RangeInclusive<usize>) -> Result<()> {
    if values.iter().all(|v| range.contains(v)) {
        return Ok(());
    }
    let message = format!("must lie between {} and {}, got {values:?}", range.start(), range.end());
    Err(Error::config(format!("{key}.{name}"), message))
}

/// Views that want image tokens, which come first.
pub(super) fn views_with_image(views: &[View]) -> Result<usize> {
    let count = views.iter().take_while(|v| v.image_token).count();
    if views[count..].iter().any(|v| v.image_token) {
        return Err(Error::invariant(
            "model building",
            "views without an image token must come last in the stream",
        ));
    }
    Ok(count)
}
