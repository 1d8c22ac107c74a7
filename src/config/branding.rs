//! How the operator's own looks: a name, a logo, a colour, where help is to be had, a last line.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use imagesize::ImageType;
use lettre::address::Address;

use crate::config::fault::Wrong;
use crate::config::{address, named_file, values};

/// A logo travels with every mail.
const LARGEST_LOGO: u64 = 100 * 1024;
/// In each direction: what is larger is shown smaller by everybody, and costs whoever opens the mail.
const MOST_PIXELS: usize = 4096;
const LONGEST_NAME: usize = 60;
const LONGEST_FOOTER: usize = 300;

/// The table `[branding]`. Empty: everything goes by the server's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Branding {
    pub name: Option<String>,
    pub logo: Option<Arc<Logo>>,
    pub colour: Option<Colour>,
    pub support: Option<Support>,
    pub footer: Option<String>,
}

/// An image that every mail client shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Logo {
    /// `image/png`, `image/jpeg` or `image/gif`.
    pub media_type: &'static str,
    pub bytes: Vec<u8>,
    /// In pixels, as `height`; neither is 0.
    pub width: usize,
    pub height: usize,
}

/// Red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(pub [u8; 3]);

/// Where people are helped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// A mail address.
    Address(String),
    /// An http or https URL.
    Url(String),
}

impl Logo {
    pub(crate) fn read(path: &Path) -> Result<Self, Wrong> {
        let write = "write the path of a PNG, JPEG or GIF";
        let wrong = |what: &str| Wrong::new(format!("{} {what}", path.display()), write);
        let bytes = named_file::bytes(path, LARGEST_LOGO)?;
        let media_type = match imagesize::image_type(&bytes) {
            Ok(ImageType::Png) => "image/png",
            Ok(ImageType::Jpeg) => "image/jpeg",
            Ok(ImageType::Gif) => "image/gif",
            Ok(_) | Err(_) => return Err(wrong("is no PNG, JPEG or GIF")),
        };
        let size = imagesize::blob_size(&bytes).map_err(|_cut| wrong("is not a whole image"))?;
        if !(1..=MOST_PIXELS).contains(&size.width) || !(1..=MOST_PIXELS).contains(&size.height) {
            return Err(wrong(&format!("has {} by {} pixels", size.width, size.height)));
        }
        Ok(Self { media_type, bytes, width: size.width, height: size.height })
    }
}

impl fmt::Debug for Logo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Logo({}, {} by {})", self.media_type, self.width, self.height)
    }
}

pub(crate) fn name(text: &str) -> Result<String, Wrong> {
    line(text, LONGEST_NAME)
}

pub(crate) fn footer(text: &str) -> Result<String, Wrong> {
    line(text, LONGEST_FOOTER)
}

/// What would turn the words after it round is left to the pages and mails themselves.
fn line(text: &str, longest: usize) -> Result<String, Wrong> {
    let line = values::text(text)?;
    if line.chars().any(|c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')) {
        return Err(Wrong::new("holds a character that changes the direction of what follows", "remove it"));
    }
    if line.chars().count() > longest {
        return Err(Wrong::new("is too long", format!("write at most {longest} characters")));
    }
    Ok(line)
}

/// `#0b6b4f`.
pub(crate) fn colour(text: &str) -> Result<Colour, Wrong> {
    let wrong = || Wrong::new(format!("{text:?} is not a colour"), "write one such as \"#0b6b4f\"");
    let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6).ok_or_else(wrong)?;
    if !values::is_all(digits, u8::is_ascii_hexdigit) {
        return Err(wrong());
    }
    let number = u32::from_str_radix(digits, 16).map_err(|_no_digits| wrong())?;
    let [_, red, green, blue] = number.to_be_bytes();
    Ok(Colour([red, green, blue]))
}

pub(crate) fn support(text: &str) -> Result<Support, Wrong> {
    let write = "write \"help@example.org\" or \"https://example.org/help\"";
    if text.contains("://") {
        let odd = |c: char| c.is_whitespace() || c.is_control() || "\"'<>\\^`{|}".contains(c);
        return if text.contains(odd) || !text.is_ascii() {
            Err(Wrong::new(format!("{text:?} is not a URL"), write))
        } else {
            address::page_url(text, write).map(|()| Support::Url(text.to_owned()))
        };
    }
    let wrong = || Wrong::new(format!("{text:?} is neither a mail address nor a URL"), write);
    let plain = |c: char| c.is_ascii_alphanumeric() || ".@_+-".contains(c);
    let address: Address = text.parse().map_err(|_neither| wrong())?;
    if !text.chars().all(plain) || AsRef::<str>::as_ref(&address) != text {
        return Err(wrong());
    }
    Ok(Support::Address(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colour_is_six_hexadecimal_digits() {
        assert_eq!(colour("#0B6b4f"), Ok(Colour([0x0b, 0x6b, 0x4f])));
        for text in ["", "#", "0b6b4f", "#0b6b4", "#0b6b4f0", "#0b6b4g", "#+b6b4f", "green", "#ää"] {
            assert!(colour(text).is_err(), "{text}");
        }
    }

    #[test]
    fn help_is_at_one_address_or_at_one_page() {
        for text in ["help@example.org", "a.b+c@xn--bcher-kva.example"] {
            assert_eq!(support(text), Ok(Support::Address(text.to_owned())));
        }
        for text in ["https://example.org/help?topic=mail#top", "http://localhost:8080"] {
            assert_eq!(support(text), Ok(Support::Url(text.to_owned())));
        }
        for text in [
            "",
            "help",
            "Help <help@example.org>",
            "a@example.org?subject=x",
            "javascript://x",
            "https://user@example.org/",
            "https://exa mple.org",
            "https://example.org/\"><b>",
            "https://bücher.example/",
        ] {
            assert!(support(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_a_short_line_that_turns_nothing_round() {
        assert_eq!(name("Example & Söhne").as_deref(), Ok("Example & Söhne"));
        for text in ["", "a\nb", "a\u{202e}b", "a\u{2067}b", &"x".repeat(61)] {
            assert!(name(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_logo_is_a_small_image_of_a_kind_that_mail_clients_show() {
        let folder = tempfile::tempdir().unwrap();
        let read = |bytes: &[u8]| {
            let path = folder.path().join("logo");
            std::fs::write(&path, bytes).unwrap();
            Logo::read(&path).map_err(|wrong| wrong.wrong.rsplit_once('/').unwrap().1.to_owned())
        };
        let png = |width: u32, height: u32| {
            let head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".as_slice();
            [head, &width.to_be_bytes(), &height.to_be_bytes(), &[8, 6, 0, 0, 0, 0, 0, 0, 0]].concat()
        };
        let logo = read(&png(640, 128)).unwrap();
        assert_eq!((logo.media_type, logo.width, logo.height), ("image/png", 640, 128));
        assert_eq!(read(b"GIF89a\x10\0\x20\0\0\0\0").map(|it| (it.media_type, it.height)), Ok(("image/gif", 32)));
        assert_eq!(read(&png(0, 128)).unwrap_err(), "logo has 0 by 128 pixels");
        assert_eq!(read(&png(4097, 1)).unwrap_err(), "logo has 4097 by 1 pixels");
        assert_eq!(read(&png(1, 1)[..18]).unwrap_err(), "logo is not a whole image");
        for other in [b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>".as_slice(), b"", b"RIFF\0\0\0\0WEBPVP8 "] {
            assert_eq!(read(other).unwrap_err(), "logo is no PNG, JPEG or GIF");
        }
        assert_eq!(read(&vec![0; 100 * 1024 + 1]).unwrap_err(), "logo is larger than 100 KiB");
    }
}
