//! The fuzz targets for a moment: their corpus, and some thousand mutations of it, the same ones every time.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[path = "../fuzz/targets/all.rs"]
mod targets;

const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz");
/// Mutations of each target; `tests/fuzz/run` makes millions.
const ROUNDS: usize = 5_000;

#[test]
fn the_corpus_of_every_fuzz_target_and_its_mutations_keep_what_has_to_hold() {
    let words = words(&fs::read_to_string(Path::new(FUZZ).join("words.dict")).unwrap());
    let (mut folders, mut found) = (0, Vec::new());
    for (name, run) in targets::ALL {
        let mut paths: Vec<_> =
            fs::read_dir(Path::new(FUZZ).join("corpus").join(name)).unwrap().map(|file| file.unwrap().path()).collect();
        paths.sort();
        let seeds: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(seeds.len() >= 3, "{name}");
        let mut chance = Chance(0x5eed);
        for round in 0..seeds.len() + ROUNDS {
            let input = seeds.get(round).cloned().unwrap_or_else(|| chance.mutation(&seeds, &words));
            let shown = input.escape_ascii().to_string();
            if catch_unwind(|| run(&input)).is_err() {
                found.push(format!("{name}, round {round}: {shown}"));
                break;
            }
        }
        folders += 1;
    }
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!((folders, fs::read_dir(Path::new(FUZZ).join("corpus")).unwrap().count()), (7, 7));
    assert!(words.len() > 50);
}

/// Numbers that look drawn (`SplitMix64`).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn mutation(&mut self, seeds: &[Vec<u8>], words: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let (one, other) = (self.below(input.len() + 1), self.below(input.len() + 1));
            let (from, to) = (one.min(other), one.max(other));
            let put = match self.below(6) {
                0 => vec![u8::try_from(self.below(256)).unwrap()],
                1 => input[from..to].repeat(2),
                2 => Vec::new(),
                3 => {
                    let seed = &seeds[self.below(seeds.len())];
                    seed[self.below(seed.len())..].to_vec()
                }
                _ => words[self.below(words.len())].clone(),
            };
            let end = if self.below(2) == 0 { from } else { to.min(from + put.len()) };
            input.splice(from..end, put);
        }
        input
    }
}

/// The words of a dictionary of libFuzzer's.
fn words(dictionary: &str) -> Vec<Vec<u8>> {
    let quoted = dictionary.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted
        .map(|line| {
            let mut word = Vec::new();
            let mut rest = line.as_bytes();
            while let [first, others @ ..] = rest {
                (word, rest) = match (first, others) {
                    (b'\\', [b'x', high, low, behind @ ..]) => {
                        let hex = std::str::from_utf8(&[*high, *low]).map(|hex| u8::from_str_radix(hex, 16)).unwrap();
                        ([word, vec![hex.unwrap()]].concat(), behind)
                    }
                    (b'\\', [escaped, behind @ ..]) => ([word, vec![*escaped]].concat(), behind),
                    _ => ([word, vec![*first]].concat(), others),
                };
            }
            word
        })
        .collect()
}
