//! Whether boxes that should be `[x, y, width, height]` look like two corners, `[x1, y1, x2, y2]`.

/// A box may end this many pixels beyond its picture: annotations are rounded.
const SLACK: f64 = 1.0;

/// How the boxes of some pictures fit, read either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corners {
    boxes: usize,
    /// End outside their picture, read as left, top, width and height.
    leave: usize,
    /// Have an area and end inside their picture, read as corners.
    fit: usize,
}

impl Corners {
    /// Looks at one box of a picture of `size` (`[width, height]`).
    pub fn count(&mut self, [x, y, c, d]: [f64; 4], size: [u32; 2]) {
        let [right, bottom] = size.map(|side| f64::from(side) + SLACK);
        self.boxes += 1;
        self.leave += usize::from(x + c > right || y + d > bottom);
        self.fit += usize::from(x >= 0.0 && y >= 0.0 && c > x && d > y && c <= right && d <= bottom);
    }

    pub fn add(&mut self, other: Corners) {
        self.boxes += other.boxes;
        self.leave += other.leave;
        self.fit += other.fit;
    }

    /// Boxes that are cut at the border are common, boxes that go on behind it are not; and nearly all would have to end
    /// to the right of and below where they begin.
    pub fn hint(&self) -> Option<String> {
        let Corners { boxes, leave, fit } = *self;
        let suspicious = leave > 0 && 4 * leave >= boxes && 20 * fit >= 19 * boxes;
        suspicious.then(|| {
            format!(
                "{leave} of {boxes} boxes leave their picture as [x, y, width, height], and {fit} of {boxes} fit as corners \
                 [x1, y1, x2, y2]: if that is what they are, run again with --boxes xyxy"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(boxes: &[[f64; 4]]) -> Option<String> {
        let mut corners = Corners::default();
        boxes.iter().for_each(|b| corners.count(*b, [100, 80]));
        corners.hint()
    }

    #[test]
    fn corner_pairs_are_suspected_and_usual_boxes_are_not() {
        let pairs = [
            [10.0, 5.0, 30.0, 70.0],
            [60.0, 20.0, 90.0, 75.0],
            [0.0, 0.0, 20.0, 40.0],
            [50.0, 30.0, 80.0, 79.0],
        ];
        let said = hint(&pairs).unwrap();
        assert!(said.contains("2 of 4 boxes leave") && said.contains("--boxes xyxy"), "{said}");
        let right = pairs.map(|[a, b, c, d]| [a, b, c - a, d - b]);
        assert_eq!(hint(&right), None);
        // One person that fills its picture, and one of many that is annotated beyond the border.
        assert_eq!(hint(&[[1.0, 1.0, 99.5, 79.5]]), None);
        assert_eq!(hint(&[[10.0, 5.0, 95.0, 60.0], [5.0, 5.0, 9.0, 20.0], [70.0, 9.0, 20.0, 40.0]]), None);
        assert_eq!(hint(&[]), None);
    }
}
