//! Pictures as HTML: everything is embedded, maps lie over the picture as vector graphics.

use std::fmt::Write as _;
use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

use super::color::viridis;
use super::data::{AttentionMap, InstanceResult, Neighbours, Pictures, Reconstruction, SceneResult};
use super::escape::escape;
use crate::error::{Error, Result};

const JPEG_QUALITY: u8 = 90;
/// The heat map lies over the greyscale picture with this opacity.
const HEAT_OPACITY: f32 = 0.62;

/// All picture sections; empty lists leave no trace.
pub(super) fn sections(pictures: &Pictures) -> Result<String> {
    let mut page = Page::default();
    page.reconstructions(&pictures.reconstructions)?;
    page.scenes(&pictures.scenes)?;
    page.attention(&pictures.attention)?;
    page.neighbours(&pictures.neighbours)?;
    Ok(page.html)
}

/// Draws into `html`; identifiers of shared pictures are numbered through the page.
#[derive(Default)]
struct Page {
    html: String,
    shared: usize,
}

impl Page {
    fn open(&mut self, id: &str, title: &str, note: &str) {
        let _ = writeln!(self.html, "<section id=\"{id}\"><h2>{title}</h2><p class=\"note\">{note}</p>");
    }

    fn reconstructions(&mut self, items: &[Reconstruction]) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        self.open(
            "reconstructions",
            "Reconstruction (CSR)",
            "Left to right: the masked view that the encoder sees, the prediction pasted over its hidden patches, the \
             original. Targets are normalised per patch, so predictions take their brightness and contrast from the \
             true patch.",
        );
        self.html.push_str("<div class=\"cards\">\n");
        for (i, item) in items.iter().enumerate() {
            self.html.push_str("<div class=\"card row tight\">");
            for (picture, caption) in
                [(&item.masked, "masked"), (&item.predicted, "predicted"), (&item.input, "original")]
            {
                let what = format!("reconstructions[{i}].{caption}");
                let img = img(picture, 200, &what)?;
                let _ = write!(self.html, "<figure>{img}<figcaption>{caption}</figcaption></figure>");
            }
            self.html.push_str("</div>\n");
        }
        self.html.push_str("</div></section>\n");
        Ok(())
    }

    fn scenes(&mut self, items: &[SceneResult]) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        self.open(
            "scenes",
            "Search in multi-person images (CSS)",
            "For each instance: the query, then the predicted probability per token over the scene, with the true \
             region outlined in green along token edges. IoU counts tokens with a probability of at least one half.",
        );
        self.color_bar("0", "1", "probability");
        for (i, item) in items.iter().enumerate() {
            let what = format!("scenes[{i}]");
            let scene = img(&item.scene, 200, &what)?;
            let _ = write!(
                self.html,
                "<div class=\"card row\"><figure>{scene}<figcaption>scene</figcaption></figure>"
            );
            let mut stack = Stack::new(&item.scene, item.grid, 200, &what, &mut self.shared)?;
            for (j, instance) in item.instances.iter().enumerate() {
                self.instance(instance, &mut stack, &format!("{what}.instances[{j}]"))?;
            }
            self.html.push_str("</div>\n");
        }
        self.html.push_str("</section>\n");
        Ok(())
    }

    fn instance(&mut self, instance: &InstanceResult, stack: &mut Stack, what: &str) -> Result<()> {
        stack.check(&instance.truth, &format!("{what}.truth"))?;
        let overlay =
            stack.heat(&instance.predicted, 1.0, Some(&instance.truth), &format!("{what}.predicted"))?;
        let iou = match iou(&instance.truth, &instance.predicted) {
            Some(value) => format!("IoU {value:.2}"),
            None => "absent, and not found".to_owned(),
        };
        let query = img(&instance.query, stack.shown.1, &format!("{what}.query"))?;
        let _ = write!(
            self.html,
            "<figure>{query}<figcaption>query</figcaption></figure>\
             <figure>{overlay}<figcaption><b>{iou}</b></figcaption></figure>"
        );
        Ok(())
    }

    fn attention(&mut self, items: &[AttentionMap]) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        self.open(
            "attention",
            "Attention of the image token",
            "The mean over heads, then each head; every map is scaled to its own maximum, given below it (a uniform \
             map would have the value under the picture).",
        );
        self.color_bar("0", "maximum", "attention weight");
        self.html.push_str("<div class=\"cards\">\n");
        for (i, item) in items.iter().enumerate() {
            let what = format!("attention[{i}]");
            let picture = img(&item.image, 200, &what)?;
            let uniform = 1.0 / (item.grid[0] * item.grid[1]).max(1) as f64;
            let _ = write!(
                self.html,
                "<div class=\"card row\"><figure>{picture}<figcaption>uniform {uniform:.4}</figcaption></figure>"
            );
            let mut stack = Stack::new(&item.image, item.grid, 200, &what, &mut self.shared)?;
            for (h, head) in item.heads.iter().enumerate() {
                stack.check(head, &format!("{what}.heads[{h}]"))?;
            }
            if item.heads.is_empty() {
                self.html.push_str("</div>\n");
                continue;
            }
            let mean: Vec<f32> = (0..item.grid[0] * item.grid[1])
                .map(|t| item.heads.iter().map(|h| h[t]).sum::<f32>() / item.heads.len() as f32)
                .collect();
            let overlay = stack.heat(&mean, maximum(&mean), None, &what)?;
            let _ = write!(
                self.html,
                "<figure>{overlay}<figcaption>mean, max {:.3}</figcaption></figure><div class=\"heads\">",
                maximum(&mean)
            );
            // Few heads have room to be as readable as the mean.
            let mut small = stack.resized(if item.heads.len() <= 4 { 140 } else { 92 });
            for (h, head) in item.heads.iter().enumerate() {
                let overlay = small.heat(head, maximum(head), None, &what)?;
                let _ = write!(
                    self.html,
                    "<figure>{overlay}<figcaption>{}: {:.3}</figcaption></figure>",
                    h + 1,
                    maximum(head)
                );
            }
            self.html.push_str("</div></div>\n");
        }
        self.html.push_str("</div></section>\n");
        Ok(())
    }

    fn neighbours(&mut self, items: &[Neighbours]) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        self.open(
            "neighbours",
            "Nearest neighbours",
            "The query, then its nearest images by distance of their features. Green and ✓: same identity; red and ✗: \
             another one.",
        );
        for (i, item) in items.iter().enumerate() {
            let query = img(&item.query, 160, &format!("neighbours[{i}].query"))?;
            let _ = write!(
                self.html,
                "<div class=\"card row tight\"><figure class=\"hit query\">{query}<figcaption>query</figcaption>\
                 </figure>"
            );
            for (j, (picture, correct, distance, caption)) in item.results.iter().enumerate() {
                let result = img(picture, 160, &format!("neighbours[{i}].results[{j}]"))?;
                let (class, sign) = if *correct { ("right", "✓") } else { ("wrong", "✗") };
                let caption = escape(caption);
                let _ = write!(
                    self.html,
                    "<figure class=\"hit {class}\">{result}<figcaption><b>{sign} {distance:.3}</b><span \
                     title=\"{caption}\">{caption}</span></figcaption></figure>"
                );
            }
            self.html.push_str("</div>\n");
        }
        self.html.push_str("</section>\n");
        Ok(())
    }

    fn color_bar(&mut self, low: &str, high: &str, what: &str) {
        // CSS gradients interpolate linearly: 17 stops follow the map closely enough for the eye.
        let stops: Vec<String> =
            (0..=16).map(|i| viridis(i as f32 / 16.0)).map(|[r, g, b]| format!("rgb({r},{g},{b})")).collect();
        let _ = writeln!(
            self.html,
            "<p class=\"bar\"><span>{low}</span><i style=\"background:linear-gradient(90deg,{})\"></i>\
             <span>{high}</span><em>{what}</em></p>",
            stops.join(",")
        );
    }
}

/// One photograph that is embedded once and drawn under many maps.
struct Stack {
    id: usize,
    /// The data URI until the first use has embedded it.
    uri: Option<String>,
    /// Size of the photograph and size on the page, in pixels.
    size: (u32, u32),
    shown: (u32, u32),
    grid: [usize; 2],
}

impl Stack {
    fn new(image: &RgbImage, grid: [usize; 2], height: u32, what: &str, counter: &mut usize) -> Result<Self> {
        if grid[0] == 0 || grid[1] == 0 || grid[0].checked_mul(grid[1]).is_none() {
            return Err(invalid(what, format!("a grid of {} x {} tokens cannot be drawn", grid[0], grid[1])));
        }
        *counter += 1;
        let uri = Some(data_uri(image, what)?);
        Ok(Stack { id: *counter, uri, size: image.dimensions(), shown: shown(image, height), grid })
    }

    /// The same photograph at another height; it must have been drawn once before.
    fn resized(&self, height: u32) -> Stack {
        let (w, h) = self.shown;
        let shown = ((w * height).div_ceil(h.max(1)), height);
        Stack { id: self.id, uri: self.uri.clone(), size: self.size, shown, grid: self.grid }
    }

    fn check(&self, values: &[f32], what: &str) -> Result<()> {
        let tokens = self.grid[0] * self.grid[1];
        if values.len() == tokens {
            return Ok(());
        }
        let [rows, columns] = self.grid;
        Err(invalid(what, format!("a {rows} x {columns} grid has {tokens} values, found {}", values.len())))
    }

    /// The photograph in grey under `values / full` as colours, with the region `truth > 0.5` outlined.
    fn heat(&mut self, values: &[f32], full: f32, truth: Option<&[f32]>, what: &str) -> Result<String> {
        self.check(values, what)?;
        let [rows, columns] = self.grid;
        let scale = if full > 0.0 { 1.0 / full } else { 0.0 };
        let map = RgbImage::from_fn(columns as u32, rows as u32, |x, y| {
            let value = values[y as usize * columns + x as usize];
            // A lost value must not pass for a small one.
            Rgb(if value.is_finite() { viridis(value * scale) } else { [255, 0, 255] })
        });
        let heat = encode(&map, ImageFormat::Png, what)?;
        let ((w, h), (sw, sh), id) = (self.size, self.shown, self.id);
        let photo = match self.uri.take() {
            Some(uri) => format!(
                "<g style=\"filter:grayscale(1)\"><image id=\"photo{id}\" width=\"{w}\" height=\"{h}\" href=\"{uri}\"/>\
                 </g>"
            ),
            None => format!("<use href=\"#photo{id}\" style=\"filter:grayscale(1)\"/>"),
        };
        let outline = truth.map_or(String::new(), |t| {
            let path = contour(t, self.grid, (w as f32 / columns as f32, h as f32 / rows as f32));
            format!("<path class=\"halo\" d=\"{path}\"/><path class=\"truth\" d=\"{path}\"/>")
        });
        Ok(format!(
            "<svg class=\"map\" width=\"{sw}\" height=\"{sh}\" viewBox=\"0 0 {w} {h}\" role=\"img\">{photo}\
             <image width=\"{w}\" height=\"{h}\" preserveAspectRatio=\"none\" opacity=\"{HEAT_OPACITY}\" \
             style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{}\"/>{outline}</svg>",
            STANDARD.encode(heat)
        ))
    }
}

/// Edges between tokens inside and outside of `values > 0.5`, as an SVG path; what lies beyond the grid is outside.
fn contour(values: &[f32], grid: [usize; 2], token: (f32, f32)) -> String {
    let [rows, columns] = grid;
    let inside = |r: usize, c: usize| {
        // `wrapping_sub` of the callers turns -1 into a value beyond the grid.
        r < rows && c < columns && values[r * columns + c] > 0.5
    };
    let mut path = String::new();
    for r in 0..=rows {
        for c in 0..=columns {
            let (x, y) = (c as f32 * token.0, r as f32 * token.1);
            if inside(r, c) != inside(r.wrapping_sub(1), c) {
                let _ = write!(path, "M{x} {y}h{}", token.0);
            }
            if inside(r, c) != inside(r, c.wrapping_sub(1)) {
                let _ = write!(path, "M{x} {y}v{}", token.1);
            }
        }
    }
    path
}

/// Intersection over union at one half; `None` when both regions are empty.
fn iou(truth: &[f32], predicted: &[f32]) -> Option<f64> {
    let (mut both, mut either) = (0u32, 0u32);
    for (t, p) in truth.iter().zip(predicted) {
        let (t, p) = (*t > 0.5, *p >= 0.5);
        both += u32::from(t && p);
        either += u32::from(t || p);
    }
    (either > 0).then(|| f64::from(both) / f64::from(either))
}

/// The largest finite value; 0 when there is none.
fn maximum(values: &[f32]) -> f32 {
    values.iter().copied().filter(|v| v.is_finite()).fold(0.0, f32::max)
}

/// Size on the page: about `height` pixels, whole multiples for pictures that are enlarged, so that pixels stay
/// square and equal; a picture that is little smaller keeps its size.
fn shown(image: &RgbImage, height: u32) -> (u32, u32) {
    let (w, h) = image.dimensions();
    let (w, h) = (w.max(1), h.max(1));
    let times = (height as f32 / h as f32).round() as u32;
    let enlarged = times >= 2 && h * times <= height + height / 4;
    if w / 4 <= h && (enlarged || times == 1 && h <= height) {
        (w * times, h * times)
    } else {
        // Quotient and product both fit: the page is never wider than four times its height.
        let width = u64::from(w) * u64::from(height) / u64::from(h);
        (width.clamp(1, 4 * u64::from(height)) as u32, height)
    }
}

fn img(image: &RgbImage, height: u32, what: &str) -> Result<String> {
    let (w, h) = shown(image, height);
    let class = if h > image.height() { " class=\"crisp\"" } else { "" };
    Ok(format!("<img{class} width=\"{w}\" height=\"{h}\" alt=\"\" src=\"{}\">", data_uri(image, what)?))
}

/// The picture as a `data:` URI: PNG, or JPEG where that is less than half the size (photographs).
fn data_uri(image: &RgbImage, what: &str) -> Result<String> {
    if image.width() == 0 || image.height() == 0 {
        return Err(invalid(what, format!("the picture is empty ({} x {})", image.width(), image.height())));
    }
    let png = encode(image, ImageFormat::Png, what)?;
    let jpeg = encode(image, ImageFormat::Jpeg, what)?;
    let (kind, bytes) = if jpeg.len() * 2 < png.len() { ("jpeg", jpeg) } else { ("png", png) };
    Ok(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes)))
}

fn encode(image: &RgbImage, format: ImageFormat, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let done = match format {
        ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(image),
        _ => DynamicImage::from(image.clone()).write_to(&mut bytes, format),
    };
    done.map_err(|e| invalid(what, format!("the picture cannot be encoded: {e}")))?;
    Ok(bytes.into_inner())
}

fn invalid(what: &str, message: String) -> Error {
    Error::shape(what, "report", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contour_runs_along_token_edges() {
        // One token in the corner and one in the middle row: each has four edges.
        let values = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let path = contour(&values, [2, 3], (16.0, 8.0));
        assert_eq!(path.matches('M').count(), 8);
        assert!(path.contains("M0 0h16") && path.contains("M0 0v8") && path.contains("M48 8v8"));
        // Two neighbours share no inner edge.
        assert_eq!(contour(&[1.0, 1.0], [1, 2], (1.0, 1.0)).matches('M').count(), 6);
        assert_eq!(contour(&[f32::NAN; 4], [2, 2], (1.0, 1.0)), "");
    }

    #[test]
    fn iou_counts_tokens() {
        assert_eq!(iou(&[1.0, 1.0, 0.0, 0.0], &[0.9, 0.1, 0.5, f32::NAN]), Some(1.0 / 3.0));
        assert_eq!(iou(&[0.0], &[0.2]), None);
    }

    #[test]
    fn small_pictures_grow_by_whole_factors() {
        assert_eq!(shown(&RgbImage::new(32, 64), 224), (128, 256));
        assert_eq!(shown(&RgbImage::new(128, 256), 256), (128, 256));
        assert_eq!(shown(&RgbImage::new(64, 128), 160), (64, 128));
        assert_eq!(shown(&RgbImage::new(1000, 2000), 200), (100, 200));
    }

    #[test]
    fn bad_sizes_are_errors_that_name_the_picture() {
        let scene = |grid, truth: usize| SceneResult {
            scene: RgbImage::new(32, 32),
            instances: vec![InstanceResult {
                query: RgbImage::new(16, 32),
                truth: vec![0.0; truth],
                predicted: vec![0.0; 4],
            }],
            grid,
        };
        let message = |s| {
            let pictures = Pictures { scenes: vec![s], ..Default::default() };
            sections(&pictures).unwrap_err().to_string()
        };
        assert!(message(scene([2, 2], 3)).contains("scenes[0].instances[0].truth"));
        assert!(message(scene([0, 2], 0)).contains("0 x 2"));
        assert!(sections(&Pictures { scenes: vec![scene([2, 2], 4)], ..Default::default() }).is_ok());
        let empty = RgbImage::new(0, 4);
        assert!(data_uri(&empty, "x").unwrap_err().to_string().contains("empty"));
    }
}
