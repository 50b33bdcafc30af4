//! Why a disk or an image that others wait for cannot be used, in its own words.

use std::fmt::Display;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The rest of a sentence, after the object's name: `is not there`, `is Failed: The server answers 404.`
#[must_use]
pub fn why<P: Display>(phase: Option<P>, conditions: &[Condition], deleted: Option<&Time>) -> String {
    if deleted.is_some() {
        return "is being deleted".to_owned();
    }
    let Some(phase) = phase else { return "has just been created".to_owned() };
    let told = holdfast_api::condition::find(conditions, "Ready").map(|ready| ready.message.as_str());
    match told.unwrap_or_default().trim_end_matches('.') {
        "" => format!("is {phase}"),
        told => format!("is {phase}: {told}"),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_env::Timestamp;

    use super::*;

    #[test]
    fn the_object_speaks_for_itself() {
        let said = |message: &str| Condition {
            type_: "Ready".into(),
            status: "False".into(),
            reason: "R".into(),
            message: message.into(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        };
        let deleted = Time(Timestamp::UNIX_EPOCH);
        for (phase, conditions, deleted, want) in [
            (None, vec![], None, "has just been created"),
            (Some("Provisioning"), vec![said("")], None, "is Provisioning"),
            (
                Some("Failed"),
                vec![said("The server answers 404.")],
                None,
                "is Failed: The server answers 404",
            ),
            (Some("Failed"), vec![], Some(&deleted), "is being deleted"),
        ] {
            assert_eq!(why(phase, &conditions, deleted), want);
        }
    }
}
