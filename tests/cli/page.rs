//! The page that `compare --plot out.html` writes: in itself, and in a real browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Folder, f32s, finegrain, stdout};

/// Names that would break a page that does not escape them.
const LAYER: &str = "l0<script>alert('1')</script>&\"q\"";

fn page(folder: &Folder) -> (PathBuf, String) {
    let wave =
        |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin() * (1.0 + (i % 7) as f32)).collect::<Vec<_>>();
    let name = |part: &str| format!("{LAYER}.{part}");
    let file = folder.write(
        "layers",
        &[
            (&name("x"), f32s(&[160, 256], &wave(160 * 256, 0.37))),
            (&name("w"), f32s(&[144, 256], &wave(144 * 256, 0.11))),
            (&name("dy"), f32s(&[160, 144], &wave(160 * 144, 0.71))),
        ],
    );
    let out = folder.path("page.html");
    let args = ["compare", &file, "--layer", ".", "--plot", out.to_str().unwrap()];
    stdout(&finegrain(args.iter().chain(&[
        "--recipe",
        "te",
        "--recipe",
        "te-current",
        "--accumulate",
        "hopper/128",
    ])));
    let text = std::fs::read_to_string(&out).unwrap();
    (out, text)
}

#[test]
fn the_page_needs_nothing_else_and_has_every_part() {
    let folder = Folder::new();
    let (_, text) = page(&folder);
    for part in ["ranking", "budget", "tiles", "sweep"] {
        assert!(text.contains(&format!("data-part=\"{part}\"")), "{part}");
    }
    for outside in ["http:", "https:", "//", "<script", "<link", "@import", "url(", "src="] {
        assert!(!text.contains(outside), "the page refers to something: {outside}");
    }
    assert!(text.contains("l0&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;q&quot;"));
    assert!(text.contains("prefers-color-scheme: dark") && text.contains("width=device-width"));
    // Every picture has words.
    for tag in ["<svg", "class=\"stack\"", "class=\"track\""] {
        let all = text.matches(tag).count();
        let pictures = text
            .split(tag)
            .skip(1)
            .filter(|rest| rest.split('>').next().unwrap().contains("aria-label=\""))
            .count();
        assert!(all > 0 && all == pictures, "{tag}: {pictures} of {all} have words");
    }
    // 160x144 has four tiles; the worst stand in a table by name.
    assert!(text.contains("Y[128-159, 128-143]") && text.contains("dW[0-127, 128-255]"));
    assert_eq!(folder.list(), ["layers", "page.html"]);
}

/// The browser, or why there is none.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let found = std::env::split_paths(&path).flat_map(|dir| names.map(|n| dir.join(n))).find(|p| p.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("FINEGRAIN_REQUIRE_CHROMIUM").is_none(),
            "no chromium on the path: {names:?}"
        );
        eprintln!("skipped: no chromium on the path");
    }
    found
}

/// The document that a browser makes of a file.
fn dom(browser: &Path, folder: &Folder, file: &Path, width: u32) -> String {
    let profile = folder.path("profile");
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={width},900"))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A browser's windows have a least width, so the page stands in a frame; the frame's document is measured from outside.
fn harness(page: &Path, width: u32) -> String {
    format!(
        "<body><iframe id=f style='border:0;width:{width}px;height:800px' src='{}'></iframe><pre id=out></pre><script>\
         f.onload = () => {{ const d = f.contentDocument, all = [...d.querySelectorAll('main *')]; \
         d.querySelectorAll('details').forEach(e => e.open = true); \
         const seen = e => {{ const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0 }}; \
         const inside = e => !e.closest('.scroll'); \
         const fonts = all.filter(e => e.textContent && getComputedStyle(e).fontSize).map(e => parseFloat(getComputedStyle(e).fontSize)); \
         const scale = [...d.querySelectorAll('.charts svg')].map(e => e.getBoundingClientRect().width / 420); \
         out.textContent = JSON.stringify({{ scroll: d.documentElement.scrollWidth, client: d.documentElement.clientWidth, \
         outside: all.filter(e => inside(e) && e.getBoundingClientRect().right > d.documentElement.clientWidth + 1).length, \
         parts: [...d.querySelectorAll('[data-part]')].filter(seen).map(e => e.dataset.part), \
         cells: [...d.querySelectorAll('.maps rect')].filter(seen).length, \
         curves: [...d.querySelectorAll('.curve')].filter(seen).length, \
         segments: [...d.querySelectorAll('.stack span')].filter(seen).length, \
         scripts: d.scripts.length, smallest: Math.min(...fonts), chart: Math.min(...scale), \
         heading: d.querySelector('h2').textContent }}) }}</script>",
        page.file_name().unwrap().to_str().unwrap()
    )
}

#[test]
fn a_browser_shows_all_of_it_in_wide_and_narrow_windows() {
    let Some(browser) = chromium() else { return };
    let folder = Folder::new();
    let (page, _) = page(&folder);
    for width in [1200, 380] {
        let outer = folder.path("harness.html");
        std::fs::write(&outer, harness(&page, width)).unwrap();
        let dom = dom(&browser, &folder, &outer, width.max(600) + 100);
        let json = dom.split("<pre id=\"out\">").nth(1).and_then(|rest| rest.split("</pre>").next()).unwrap();
        let json = json.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        let seen: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
        let number = |key: &str| seen[key].as_f64().unwrap();
        println!("{width} pixels: {seen}");
        assert!(number("client") <= f64::from(width) && number("client") > f64::from(width) - 20.0, "{seen}");
        assert!(number("scroll") <= number("client"), "it scrolls sideways: {seen}");
        assert_eq!(number("outside"), 0.0, "{seen}");
        for part in ["ranking", "budget", "tiles", "sweep"] {
            assert!(seen["parts"].as_array().unwrap().contains(&part.into()), "{part}: {seen}");
        }
        // Two recipes, three passes: 2x2, 2x2 and 2x2 tiles of results alone.
        assert!(number("cells") >= 24.0 && number("curves") == 5.0 && number("segments") >= 12.0, "{seen}");
        assert_eq!(number("scripts"), 0.0, "a name became a script");
        assert_eq!(seen["heading"], super::page::LAYER);
        // Text stays above 9 pixels, that of charts (12 pixels before they are scaled) included.
        assert!(number("smallest") >= 11.0 && 12.0 * number("chart") >= 9.0, "{seen}");
    }
}
