//! What a question came to: its figures as JSON, its curves as SVG, and whether each bar is met.

use std::path::{Path, PathBuf};

use anyhow::Context;
use plotters::prelude::*;
use serde::Serialize;

/// A line that a figure must stay on one side of.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Bar {
    /// What is measured.
    name: String,
    measured: f64,
    limit: f64,
    /// Whether less is better.
    at_most: bool,
    met: bool,
}

impl Bar {
    pub(crate) fn at_most(name: impl Into<String>, measured: f64, limit: f64) -> Bar {
        Bar { name: name.into(), measured, limit, at_most: true, met: measured <= limit }
    }

    pub(crate) fn at_least(name: impl Into<String>, measured: f64, limit: f64) -> Bar {
        Bar { name: name.into(), measured, limit, at_most: false, met: measured >= limit }
    }
}

/// Prints the bars, each with a mark.
pub(crate) fn print_bars(bars: &[Bar]) {
    println!("\n{:<66} {:>9} {:>10}", "bar", "measured", "wanted");
    for Bar { name, measured, limit, at_most, met } in bars {
        let (sign, mark) = (if *at_most { "<=" } else { ">=" }, if *met { "PASS" } else { "missed" });
        println!("{name:<66} {measured:>9.3} {sign:>4} {limit:<6} {mark}");
    }
}

/// Where files go, if anywhere.
#[derive(Clone, Debug)]
pub(crate) struct Output(Option<PathBuf>);

impl Output {
    pub(crate) fn new(directory: Option<PathBuf>) -> anyhow::Result<Output> {
        if let Some(directory) = &directory {
            std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        Ok(Output(directory))
    }

    /// Writes `figures` as `NAME.json`.
    pub(crate) fn json(&self, name: &str, figures: &impl Serialize) -> anyhow::Result<()> {
        let Some(directory) = &self.0 else { return Ok(()) };
        let path = directory.join(format!("{name}.json"));
        std::fs::write(&path, serde_json::to_string_pretty(figures)?).with_context(|| path.display().to_string())
    }

    /// Draws `plot` as `NAME.svg`.
    pub(crate) fn plot(&self, name: &str, plot: &Plot<'_>) -> anyhow::Result<()> {
        let Some(directory) = &self.0 else { return Ok(()) };
        let path = directory.join(format!("{name}.svg"));
        plot.draw(&path).with_context(|| path.display().to_string())
    }
}

/// Curves over a common axis.
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    /// Name and points of each.
    pub(crate) curves: Vec<(String, Vec<(f64, f64)>)>,
}

impl Plot<'_> {
    fn draw(&self, path: &Path) -> anyhow::Result<()> {
        let points = || self.curves.iter().flat_map(|(_, points)| points);
        let x_max = points().map(|point| point.0).fold(f64::MIN_POSITIVE, f64::max);
        let y_max = points().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
        let area = SVGBackend::new(path, (800, 480)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
        chart.configure_mesh().x_desc(self.x).y_desc(self.y).draw()?;
        for (index, (name, points)) in self.curves.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
            chart
                .draw_series(line)?
                .label(name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_on_its_own_side_and_at_the_limit() {
        assert!(Bar::at_most("", 2.0, 2.0).met && !Bar::at_most("", 2.1, 2.0).met);
        assert!(Bar::at_least("", 2.0, 2.0).met && !Bar::at_least("", 1.9, 2.0).met);
        assert!(!Bar::at_most("", f64::NAN, 2.0).met, "nothing measured is nothing met");
    }

    #[test]
    fn a_plot_is_an_svg_with_its_curves() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let output = Output::new(Some(directory.path().join("out"))).expect("is made");
        let curves = vec![("rising".to_owned(), vec![(0.0, 1.0), (1.0, 2.0)]), ("empty".to_owned(), Vec::new())];
        output.plot("curve", &Plot { title: "A title", x: "x", y: "y", curves }).expect("draws");
        let svg = std::fs::read_to_string(directory.path().join("out/curve.svg")).expect("is there");
        for text in ["<svg", "A title", "rising", "polyline"] {
            assert!(svg.contains(text), "{text} is missing");
        }
    }
}
