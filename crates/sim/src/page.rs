//! A history as one HTML file: who lived, ran, hung and was cut off when, what users and faults did, what broke.
//! The file needs nothing but itself.

use serde_json::json;

use crate::run::Outcome;

const TEMPLATE: &str = include_str!("page.html");

/// The page of a history; `title` says which, `again` how to run it again.
#[must_use]
pub fn page(title: &str, again: &str, outcome: &Outcome) -> String {
    let story: Vec<_> = outcome.story.iter().map(|line| entry(line)).collect();
    let broken: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
    let (spans, times) = &outcome.timeline;
    let data = json!({
        "title": title, "again": again, "steps": outcome.steps, "swarm": outcome.swarm.to_string(),
        "broken": broken, "story": story, "spans": spans, "times": times,
        "seconds": outcome.time.as_secs_f64(),
    });
    // What users typed must not end the script.
    TEMPLATE.replace("/*DATA*/", &data.to_string().replace("</", "<\\/"))
}

/// Step, time, who and what of a line of the story.
fn entry(line: &str) -> serde_json::Value {
    let mut words = line.split_whitespace();
    let step: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
    let time = words.next().unwrap_or_default();
    let who = words.next().unwrap_or_default();
    let what: Vec<&str> = words.collect();
    json!({"step": step, "time": time, "who": who, "what": what.join(" ")})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_story_is_taken_apart() {
        let line = format!("{:>8} {:>10.3}  {:<26} {}", 12, 3.5, "node-1/agent", "is killed");
        let entry = entry(&line);
        assert_eq!(entry, json!({"step": 12, "time": "3.500", "who": "node-1/agent", "what": "is killed"}));
        assert_eq!(TEMPLATE.matches("/*DATA*/").count(), 1);
    }
}
