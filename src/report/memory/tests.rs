use super::*;

fn picture(count: usize, scale: u64) -> MemoryPicture {
    let kinds = ["forward: blocks.3.attn <q>", "backward: x", "optimizer", "workspace", "q"];
    let buffers: Vec<BufferSpan> = (0..count)
        .map(|i| {
            let start = (i * 7919) % (count / 2 + 1);
            BufferSpan {
                label: format!("{}{}", kinds[i % 5], "&".repeat(i % 100)),
                start_step: start,
                end_step: start + i % 97,
                offset: (i as u64 * 104_729) % 50_000 * scale,
                bytes: (1 + (i as u64 * 31) % 977) * scale,
            }
        })
        .collect();
    let arena = buffers.iter().map(|b| b.offset + b.bytes).max().unwrap_or(0);
    MemoryPicture {
        regions: vec![("weights".to_owned(), 5 << 20), ("arena".to_owned(), arena)],
        arena_bytes: arena,
        lower_bound_bytes: arena / 10 * 9,
        buffers,
    }
}

fn attribute(tag: &str, name: &str) -> f64 {
    let start = tag.find(&format!(" {name}=\"")).unwrap() + name.len() + 3;
    tag[start..].split('"').next().unwrap().parse().unwrap()
}

fn inside(picture: &MemoryPicture) -> usize {
    let svg = memory_svg(picture);
    let rectangles = || svg.split("<rect ").skip(1).map(|s| s.split('>').next().unwrap());
    let frame = rectangles().find(|r| r.contains("\"frame\"")).unwrap();
    let [x, y, w, h] = ["x", "y", "width", "height"].map(|n| attribute(frame, n));
    let mut count = 0;
    for r in rectangles().filter(|r| r.contains("class=\"buf")) {
        let [rx, ry, rw, rh] = ["x", "y", "width", "height"].map(|n| attribute(r, n));
        assert!(rx >= x - 0.01 && ry >= y - 0.01, "{r}");
        assert!(rx + rw <= x + w + 0.02 && ry + rh <= y + h + 0.02, "{r}");
        count += 1;
    }
    for piece in
        svg.split("opacity=\".75\" d=\"M").skip(1).flat_map(|d| d.split('"').next().unwrap().split('M'))
    {
        let (px, rest) = piece.split_once(' ').unwrap();
        let (py, rest) = rest.split_once('h').unwrap();
        let pw: f64 = rest.split('v').next().unwrap().parse().unwrap();
        let (px, py): (f64, f64) = (px.parse().unwrap(), py.parse().unwrap());
        assert!(px >= x && px + pw <= x + w && py >= y - 1.0 && py + CELL <= y + h + 1.0, "{piece}");
    }
    count
}

#[test]
fn rectangles_stay_inside_the_frame() {
    // The thinnest tenth of the buffers is drawn as cells.
    assert!((170..200).contains(&inside(&picture(200, 4096))));
    assert!(inside(&picture(5000, 4096)) > 500);
    assert!(inside(&picture(300, u64::MAX / 60_000)) > 0);
}

#[test]
fn size_is_bounded_and_text_escaped() {
    for count in [2000, 60_000] {
        let svg = memory_svg(&picture(count, 1 << 12));
        assert!(svg.len() < 1_500_000, "{count} buffers: {} bytes", svg.len());
        assert!(!svg.contains("<q>"));
    }
}

#[test]
fn worst_case_cells_are_bounded() {
    // Many buffers thinner than a pixel, on every second cell: nothing merges.
    let mut tall = picture(0, 1);
    for row in 0..100u64 {
        for column in 0..250usize {
            if (row as usize + column).is_multiple_of(2) {
                let (start_step, offset) = (column * 10 + 3, row * 1000 + 500);
                let label = "grad".to_owned();
                tall.buffers.push(BufferSpan { label, start_step, end_step: start_step, offset, bytes: 1 });
            }
        }
    }
    tall.arena_bytes = 94_000;
    let svg = memory_svg(&tall);
    assert!(svg.matches("z").count() > 4000);
    assert!(svg.len() < 700_000, "{}", svg.len());
}

#[test]
fn empty_and_degenerate_pictures_draw() {
    for picture in [
        MemoryPicture::default(),
        MemoryPicture {
            buffers: vec![BufferSpan { start_step: 5, end_step: 2, bytes: 3, ..Default::default() }],
            ..Default::default()
        },
        MemoryPicture { regions: vec![("a".into(), 0), ("b".into(), u64::MAX)], ..Default::default() },
    ] {
        let svg = memory_svg(&picture);
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

#[test]
fn live_bytes_peak_where_spans_meet() {
    let span = |start_step, end_step, bytes| BufferSpan { start_step, end_step, bytes, ..Default::default() };
    let live = live_bytes(&[span(0, 2, 10), span(2, 3, 5)]);
    assert_eq!(live, [(0, 10), (2, 15), (3, 5), (4, 0)]);
}

#[test]
fn kinds_come_from_the_first_word() {
    assert_eq!(Kind::of("fwd/encoder.blocks.0"), Kind::Forward);
    assert_eq!(Kind::of("grad_x"), Kind::Backward);
    assert_eq!(Kind::of("AdamW: weights"), Kind::Optimizer);
    assert_eq!(Kind::of("forwarding"), Kind::Other);
    assert_eq!(Kind::of(""), Kind::Other);
}
