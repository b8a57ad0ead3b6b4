use super::*;

#[test]
#[ignore = "writes a contact sheet to look at"]
fn contact_sheet() {
    let world = SynthPersons::new(SynthConfig { identities: 64, images_per_identity: 8, ..Default::default() }).unwrap();
    let per: usize = std::env::var("PER").ok().and_then(|v| v.parse().ok()).unwrap_or(4);
    let first: usize = std::env::var("FIRST").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    let (cols, rows) = (12, 5);
    let mut sheet = RgbImage::new(cols * 130, rows * 258);
    for i in 0..(cols * rows) as usize {
        let (id, shot) = (first + i / per, i % per);
        let img = world.image(id * 8 + shot);
        image::imageops::replace(&mut sheet, &img, (i as u32 % cols * 130) as i64, (i as u32 / cols * 258) as i64);
    }
    sheet.save("/tmp/synth_sheet.png").unwrap();
    let zoomed = image::imageops::crop_imm(&sheet, 0, 0, 780, 516).to_image();
    let zoomed = image::imageops::resize(&zoomed, 1560, 1032, image::imageops::FilterType::Triangle);
    zoomed.save("/tmp/synth_zoom.png").unwrap();
    let start = std::time::Instant::now();
    for i in 0..200 { world.image(i); }
    println!("{:?} an image", start.elapsed() / 200);
    let start = std::time::Instant::now();
    for i in 0..100 { world.person(i); }
    println!("{:?} a person", start.elapsed() / 100);
}
