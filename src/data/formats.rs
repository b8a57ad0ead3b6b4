//! The table of picture formats: what each is called, by which extensions and first bytes it is known, and whether it is read.

use image::ImageFormat;

/// A format of pictures.
#[derive(Debug)]
pub struct Format {
    /// What messages call it.
    pub name: &'static str,
    /// In lower case, without a dot.
    pub extensions: &'static [&'static str],
    /// The decoder that reads it; none of formats that are known and not accepted.
    pub read: Option<ImageFormat>,
    /// Whether the first bytes of a file are its own, where it is not read.
    begins: fn(&[u8]) -> bool,
}

/// What is accepted, for messages; a test holds it against the table.
pub const ACCEPTED: &str = "JPEG, PNG, WebP, BMP, GIF (first frame), TIFF";

/// Every format that is told apart, those that are read first.
pub const FORMATS: &[Format] = &[
    read("JPEG", &["jpg", "jpeg", "jpe", "jfif"], ImageFormat::Jpeg),
    read("PNG", &["png"], ImageFormat::Png),
    read("WebP", &["webp"], ImageFormat::WebP),
    read("BMP", &["bmp"], ImageFormat::Bmp),
    read("GIF", &["gif"], ImageFormat::Gif),
    read("TIFF", &["tif", "tiff"], ImageFormat::Tiff),
    known("HEIC", &["heic", "heif", "hif"], |head| {
        brand(head, &[b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"])
    }),
    known("AVIF", &["avif"], |head| brand(head, &[b"avif", b"avis"])),
    known("JPEG XL", &["jxl"], |head| {
        matches!(head, [0xFF, 0x0A, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..])
    }),
    known("JPEG 2000", &["jp2", "j2k", "jpf", "jpx", "j2c"], |head| {
        matches!(head, [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..])
    }),
    known("PNM", &["ppm", "pgm", "pbm", "pnm", "pam", "pfm"], |head| {
        matches!(head, [b'P', b'1'..=b'6', b'\n' | b'\r' | b' ', b'0'..=b'9' | b'#', ..])
    }),
    known("raw camera", &["dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "pef", "srw"], |head| {
        brand(head, &[b"crx "])
    }),
    known("Photoshop", &["psd"], |head| head.starts_with(b"8BPS")),
    known("Targa", &["tga"], |_| false),
    known("OpenEXR", &["exr"], |head| head.starts_with(&[0x76, 0x2F, 0x31, 0x01])),
    known("Radiance HDR", &["hdr"], |head| head.starts_with(b"#?RADI")),
    known("SVG", &["svg"], |_| false),
    known("QOI", &["qoi"], |head| head.starts_with(b"qoif")),
    known("DDS", &["dds"], |head| head.starts_with(b"DDS ")),
    known("PCX", &["pcx"], |_| false),
    known("JPEG XR", &["jxr", "wdp"], |_| false),
];

const fn read(name: &'static str, extensions: &'static [&'static str], decoder: ImageFormat) -> Format {
    Format { name, extensions, read: Some(decoder), begins: |_| false }
}

const fn known(name: &'static str, extensions: &'static [&'static str], begins: fn(&[u8]) -> bool) -> Format {
    Format { name, extensions, read: None, begins }
}

/// Whether the file's container is ISO's, of one of `brands`.
fn brand(head: &[u8], brands: &[&[u8]]) -> bool {
    head.get(4..8) == Some(b"ftyp") && head.get(8..12).is_some_and(|brand| brands.contains(&brand))
}

/// The format whose files have the extension `extension`, in whatever case.
pub fn of_extension(extension: &str) -> Option<&'static Format> {
    let extension = extension.to_ascii_lowercase();
    FORMATS.iter().find(|format| format.extensions.contains(&extension.as_str()))
}

/// The accepted format whose signature `head` (the first bytes of a file, 16 or more) carries.
pub fn sniff(head: &[u8]) -> Option<ImageFormat> {
    let found = image::guess_format(head).ok()?;
    FORMATS.iter().any(|format| format.read == Some(found)).then_some(found)
}

/// The name of a picture format that is common but not accepted, by the first bytes of a file.
pub fn sniff_unread(head: &[u8]) -> Option<&'static str> {
    FORMATS.iter().find(|format| (format.begins)(head)).map(|format| format.name)
}

/// What is said of a picture whose `format` no decoder here reads.
pub fn unread(format: &str) -> String {
    format!("{format} pictures are not read: convert them to one of {ACCEPTED}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_is_told_and_known_by_its_extensions() {
        let told: Vec<&str> = ACCEPTED.split(", ").map(|part| part.split(' ').next().unwrap()).collect();
        let read: Vec<&str> = FORMATS.iter().filter(|f| f.read.is_some()).map(|f| f.name).collect();
        assert_eq!(told, read);
        assert_eq!(of_extension("JPeG").map(|f| f.name), Some("JPEG"));
        assert_eq!(of_extension("heif").map(|f| (f.name, f.read)), Some(("HEIC", None)));
        assert!(of_extension("txt").is_none() && of_extension("").is_none());
        let all: Vec<&str> = FORMATS.iter().flat_map(|f| f.extensions).copied().collect();
        for (i, extension) in all.iter().enumerate() {
            assert!(!all[..i].contains(extension), "{extension} is of two formats");
            assert!(*extension == extension.to_ascii_lowercase());
        }
    }

    #[test]
    fn first_bytes_tell_formats_apart() {
        let container = |brand: &[u8]| [b"\0\0\0\x1cftyp", brand, &[0; 20]].concat();
        let unread: [(Vec<u8>, &str); 8] = [
            (container(b"heic"), "HEIC"),
            (container(b"avif"), "AVIF"),
            (container(b"crx "), "raw camera"),
            (b"\xFF\x0Aabcd".to_vec(), "JPEG XL"),
            (b"\0\0\0\x0CjP  ".to_vec(), "JPEG 2000"),
            (b"8BPS\0\x01".to_vec(), "Photoshop"),
            (b"P6\n12 9".to_vec(), "PNM"),
            (b"qoif".to_vec(), "QOI"),
        ];
        for (head, name) in unread {
            assert_eq!((sniff_unread(&head), sniff(&head)), (Some(name), None), "{name}");
        }
        let read: [(&[u8], ImageFormat); 3] = [
            (b"\xFF\xD8\xFF\xE0", ImageFormat::Jpeg),
            (b"GIF89a", ImageFormat::Gif),
            (b"BM", ImageFormat::Bmp),
        ];
        for (head, format) in read {
            assert_eq!((sniff(head), sniff_unread(head)), (Some(format), None));
        }
        // What the decoders' library knows beside these.
        assert_eq!(sniff(b"P6\n12 9"), None);
        assert_eq!(sniff_unread(b"P6 x"), None);
    }
}
