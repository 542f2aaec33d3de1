//! A headless Chromium that tests look at pages with, over its DevTools protocol.
//!
//! The protocol goes over a pair of pipes (`--remote-debugging-pipe`: JSON with a NUL behind each message), so that neither a port nor a WebSocket
//! is needed. <https://chromedevtools.github.io/devtools-protocol/>

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::tools::{LOOK, Owned};

/// How long the browser may take for one request: its first start on a busy machine takes many seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// The browser of this machine, if there is one.
#[must_use]
pub fn chromium() -> Option<PathBuf> {
    let asked = std::env::var_os("HELIO_CHROMIUM").map(PathBuf::from);
    let known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].map(PathBuf::from);
    asked.into_iter().chain(known).find(|path| path.exists())
}

/// A running browser with one page.
pub struct Browser {
    // Ended before its profile is removed.
    _process: Owned,
    to: ChildStdin,
    messages: Receiver<Value>,
    session: String,
    number: u64,
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts `program` with an empty page.
    ///
    /// # Errors
    /// When it does not start, or does not speak the protocol.
    pub fn start(program: &Path) -> anyhow::Result<Browser> {
        let profile = tempfile::tempdir()?;
        // Its pipes are descriptors 3 and 4, which only a shell can make of the ordinary ones.
        let script = "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(program);
        command.args([
            "--headless=new",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
        ]);
        command.args(["--disable-extensions", "--disable-dev-shm-usage", "--disable-background-networking"]);
        if rustix::process::geteuid().is_root() {
            command.arg("--no-sandbox");
        }
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        let mut process = Owned::start_fed(command.stdin(Stdio::piped()).stdout(Stdio::piped()), "chromium")?;
        let to = process.stdin().context("it has a standard input")?;
        let from = process.stdout().context("it has a standard output")?;
        let (send, messages) = channel();
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut message = Vec::new();
            while from.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                // Nobody may listen any more.
                let _ = serde_json::from_slice(&message).map(|message| send.send(message));
                message.clear();
            }
        });
        let (session, events) = (String::new(), Vec::new());
        let mut browser = Browser { _process: process, to, messages, session, number: 0, events, _profile: profile };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attached =
            browser.call("Target.attachToTarget", json!({ "targetId": page["targetId"], "flatten": true }))?;
        browser.session = attached["sessionId"].as_str().context("there is a session")?.to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Has the browser do something.
    ///
    /// # Errors
    /// When it refuses, or does not answer in time.
    pub fn call(&mut self, method: &str, parameters: Value) -> anyhow::Result<Value> {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = Value::from(self.session.as_str());
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.to.write_all(&bytes).context("the browser has ended")?;
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let mut answer = self.messages.recv_timeout(left).with_context(|| format!("no answer to {method}"))?;
            if answer["id"] != self.number {
                self.events.push(answer);
                continue;
            }
            ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
            return Ok(answer["result"].take());
        }
    }

    /// Shows the page at `address`, so many pixels wide, in the light or the dark.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn open(&mut self, address: &str, width: u32, theme: &str) -> anyhow::Result<()> {
        self.resize(width, 900)?;
        let theme = json!([{ "name": "prefers-color-scheme", "value": theme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": theme }))?;
        let told = self.call("Page.navigate", json!({ "url": address }))?;
        ensure!(told["errorText"].is_null(), "{address}: {}", told["errorText"]);
        Ok(())
    }

    /// Makes the window so large.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn resize(&mut self, width: u32, height: u64) -> anyhow::Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size).map(drop)
    }

    /// What an expression of JavaScript comes to in the page; a promise is waited for.
    ///
    /// # Errors
    /// When it throws.
    pub fn value(&mut self, expression: &str) -> anyhow::Result<Value> {
        let asked = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut told = self.call("Runtime.evaluate", asked)?;
        ensure!(told["exceptionDetails"].is_null(), "{expression}: {}", told["exceptionDetails"]);
        Ok(told["result"]["value"].take())
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// When it is not within `patience`; what the page says is in the message.
    pub fn until(&mut self, what: &str, patience: Duration, expression: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.value(expression)? != true {
            if begun.elapsed() > patience {
                let said = self.value("document.body?.innerText ?? ''")?;
                bail!("{what}: not within {patience:?}; the page says:\n{}", said.as_str().unwrap_or(""));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Presses a key, such as `Escape`, `Enter` or `Tab`.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn press(&mut self, key: &str, code: u32) -> anyhow::Result<()> {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Types a text where the focus is.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn write(&mut self, text: &str) -> anyhow::Result<()> {
        self.call("Input.insertText", json!({ "text": text })).map(drop)
    }

    /// Writes a picture of the whole page, so wide, to a PNG file; returns by how many pixels something reaches beyond its right edge.
    ///
    /// # Errors
    /// As [`call`](Self::call), and when the file cannot be written.
    pub fn picture(&mut self, width: u32, file: &Path) -> anyhow::Result<i64> {
        self.resize(width, 900)?;
        let beyond = self.value("document.documentElement.scrollWidth - innerWidth")?.as_i64().context("a number")?;
        let height = self.value("document.documentElement.scrollHeight")?.as_u64().context("a number")?;
        self.resize(width, height.min(8000))?;
        // Two frames, so that what follows the size has followed.
        self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")?;
        let told = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        std::fs::write(file, base64(told["data"].as_str().context("a picture")?)?)?;
        self.resize(width, 900)?;
        Ok(beyond)
    }

    /// What was wrong so far: errors of scripts, of the console, of the policy that the page came with.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn complaints(&mut self) -> anyhow::Result<Vec<String>> {
        // What was on its way is here then.
        self.value("0")?;
        let is_wrong = |event: &&Value| match event["method"].as_str().unwrap_or("") {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => ["error", "assert"].contains(&event["params"]["type"].as_str().unwrap_or("")),
            // That the node could not do something at that moment is for the page to show.
            "Log.entryAdded" => {
                let entry = &event["params"]["entry"];
                let is_answer = entry["source"] == "network"
                    && entry["text"].as_str().is_some_and(|it| it.contains("status of 503"));
                entry["level"] == "error" && !is_answer
            }
            _ => false,
        };
        Ok(self.events.iter().filter(is_wrong).map(Value::to_string).collect())
    }

    /// Addresses that were asked for so far.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| event["params"]["request"]["url"].as_str()).map(str::to_owned).collect()
    }

    /// Forgets what was wrong, and what was asked for.
    pub fn forget(&mut self) {
        self.events.clear();
    }
}

/// RFC 4648, section 4.
fn base64(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("{letter:#x} is not of base64"),
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_decoded() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmE=", "fooba")] {
            assert_eq!(base64(text).expect("is base64"), bytes.as_bytes());
        }
        assert_eq!(base64("+/+/").expect("is base64"), [0xfb, 0xff, 0xbf]);
        assert!(base64("a-b").is_err());
    }
}
