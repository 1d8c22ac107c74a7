//! How mails and pages look as the operator's own: his colours made legible, his logo at a size that fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minijinja::Value;

use crate::config::{Branding, Colour, Logo, Support};

/// What a mail's logo is called in it (RFC 2392).
pub const LOGO_ID: &str = "logo@threepid-shim";

/// The most that a logo takes of a mail or a page, in CSS pixels: one of twice the size is sharp on every screen.
const WIDEST: usize = 240;
const HIGHEST: usize = 64;

const WHITE: Colour = Colour([255, 255, 255]);
const BLACK: Colour = Colour([0, 0, 0]);
/// What a page's card is in light and in dark (`style.css`); a mail's ground is close to them.
const LIGHT_CARD: Colour = WHITE;
const DARK_CARD: Colour = Colour([0x1a, 0x1f, 0x1d]);

/// Of WCAG 2.2: text on its ground (1.4.3); a button on what is around it (1.4.11).
const TEXT: f64 = 4.5;
const SHAPE: f64 = 3.0;

/// Where something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Mail,
    Page,
    /// A message has room for nothing.
    Message,
}

#[derive(Debug, Default)]
pub(super) struct Brand {
    branding: Branding,
    logo_url: String,
}

impl Brand {
    pub(super) fn new(branding: Branding) -> Self {
        let logo_url = branding.logo.as_ref().map_or_else(String::new, |logo| {
            format!("data:{};base64,{}", logo.media_type, STANDARD.encode(&logo.bytes))
        });
        Self { branding, logo_url }
    }

    /// What the operator calls his service.
    pub(super) fn name<'a>(&'a self, server_name: &'a str) -> &'a str {
        self.branding.name.as_deref().unwrap_or(server_name)
    }

    pub(super) fn logo(&self) -> Option<&Arc<Logo>> {
        self.branding.logo.as_ref()
    }

    /// What templates know as `brand`. All of it is the operator's.
    pub(super) fn value(&self, server_name: &str, place: Place) -> Value {
        let Branding { name, logo, colour, support, footer } = &self.branding;
        let logo = logo.as_ref().filter(|_| place != Place::Message).map(|logo| {
            let src = if place == Place::Mail { format!("cid:{LOGO_ID}") } else { self.logo_url.clone() };
            let (width, height) = fitting(logo.width, logo.height);
            Value::from(BTreeMap::from([("src", Value::from(src)), ("width", width.into()), ("height", height.into())]))
        });
        let colour = colour.map(|colour| {
            let in_light = shades(colour, legible(colour, LIGHT_CARD, BLACK));
            let in_dark = shades(colour, legible(colour, DARK_CARD, WHITE));
            Value::from(BTreeMap::from([("light", in_light), ("dark", in_dark)]))
        });
        let (support, support_url) = match support {
            Some(Support::Address(address)) => (Some(address.as_str()), Some(format!("mailto:{address}"))),
            Some(Support::Url(url)) => (Some(url.as_str()), Some(url.clone())),
            None => (None, None),
        };
        Value::from(BTreeMap::from([
            ("name", Value::from(name.as_deref().unwrap_or(server_name))),
            ("is_named", name.is_some().into()),
            ("logo", logo.into()),
            ("colour", colour.into()),
            ("support", support.into()),
            ("support_url", support_url.into()),
            ("footer", footer.as_deref().into()),
        ]))
    }
}

/// As large as there is room, never larger than it is, in its own shape.
fn fitting(width: usize, height: usize) -> (usize, usize) {
    let (room, size) = if width * HIGHEST >= height * WIDEST { (WIDEST, width) } else { (HIGHEST, height) };
    if size <= room {
        return (width, height);
    }
    ((width * room / size).max(1), (height * room / size).max(1))
}

/// A button's ground, the same under the pointer, the text on both, and the line around them.
fn shades(ground: Colour, edge: Colour) -> Value {
    // Of black and white one always has 4.58 or more.
    let on = if contrast(ground, WHITE) >= TEXT { WHITE } else { BLACK };
    // Away from the text's colour, so that contrast only grows.
    let strong = mixed(ground, if on == WHITE { BLACK } else { WHITE }, 20);
    let parts = [("accent", ground), ("strong", strong), ("on_accent", on), ("edge", edge)];
    Value::from(BTreeMap::from(parts.map(|(name, colour)| (name, Value::from(hexadecimal(colour))))))
}

/// The colour itself, or the nearest towards black or white that stands out from what is around it.
fn legible(colour: Colour, around: Colour, towards: Colour) -> Colour {
    let steps = (0..=100).map(|percent| mixed(colour, towards, percent));
    steps.into_iter().find(|step| contrast(*step, around) >= SHAPE).unwrap_or(towards)
}

fn mixed(Colour(from): Colour, Colour(to): Colour, percent: u16) -> Colour {
    let mut mixed = from;
    for (part, to) in mixed.iter_mut().zip(to) {
        let sum = (u16::from(*part) * (100 - percent) + u16::from(to) * percent) / 100;
        *part = u8::try_from(sum).unwrap_or(to);
    }
    Colour(mixed)
}

/// WCAG 2.2's contrast ratio, 1 to 21.
fn contrast(one: Colour, other: Colour) -> f64 {
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

fn luminance(Colour(parts): Colour) -> f64 {
    let linear = parts.map(|part| {
        let part = f64::from(part) / 255.0;
        if part <= 0.040_45 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    });
    linear.iter().zip([0.2126, 0.7152, 0.0722]).map(|(part, weight)| part * weight).sum()
}

fn hexadecimal(Colour([red, green, blue]): Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_colour_a_button_is_seen_and_its_text_can_be_read() {
        let steps = || (0..=255).step_by(15);
        let mut ran = 0;
        for (red, green, blue) in steps().flat_map(|r| steps().flat_map(move |g| steps().map(move |b| (r, g, b)))) {
            let colour = Colour([red, green, blue]);
            for (card, towards) in [(LIGHT_CARD, BLACK), (DARK_CARD, WHITE)] {
                let shades = shades(colour, legible(colour, card, towards));
                let read = |name: &str| {
                    let digits =
                        u32::from_str_radix(shades.get_attr(name).unwrap().to_string().trim_start_matches('#'), 16)
                            .unwrap();
                    let [_, red, green, blue] = digits.to_be_bytes();
                    Colour([red, green, blue])
                };
                assert_eq!(read("accent"), colour);
                assert!(contrast(read("edge"), card) >= SHAPE, "{colour:?} on {card:?}: {shades}");
                for under in ["accent", "strong"] {
                    assert!(contrast(read(under), read("on_accent")) >= TEXT, "{colour:?}: {shades}");
                }
                ran += 1;
            }
        }
        assert_eq!(ran, 2 * 18 * 18 * 18);
    }

    #[test]
    fn contrast_is_that_of_wcag() {
        assert!((contrast(BLACK, WHITE) - 21.0).abs() < 1e-9);
        // As WebAIM's checker has it.
        assert!((contrast(Colour([0x77, 0x77, 0x77]), WHITE) - 4.48).abs() < 0.01);
        assert!((contrast(Colour([0x0b, 0x6b, 0x4f]), WHITE) - 6.50).abs() < 0.01);
    }

    #[test]
    fn a_button_has_a_line_of_its_own_colour_where_that_can_be_seen() {
        let colour = Colour([0x0b, 0x6b, 0x4f]);
        assert_eq!(legible(colour, LIGHT_CARD, BLACK), colour);
        assert_ne!(legible(colour, DARK_CARD, WHITE), colour);
    }

    #[test]
    fn a_logo_fits_and_keeps_its_shape() {
        let rows = [
            ((240, 64), (240, 64)),
            ((480, 128), (240, 64)),
            ((16, 16), (16, 16)),
            ((512, 512), (64, 64)),
            ((1200, 100), (240, 20)),
            ((4096, 1), (240, 1)),
            ((1, 4096), (1, 64)),
        ];
        for ((width, height), expected) in rows {
            assert_eq!(fitting(width, height), expected);
        }
    }
}
