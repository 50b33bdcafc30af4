//! kill -9 under load: what was answered is there, and nothing is told twice.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Http, LIMIT};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// How often the server is killed.
const KILLS: u64 = 12;

async fn spawn(home: &Path) -> Result<Child> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kubelith"))
        .arg(home)
        .arg("127.0.0.1:0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    tokio::time::timeout(LIMIT, lines.next_line()).await??.context("the server ended before it was up")?;
    Ok(child)
}

/// What was answered: name to (version, value, uid).
type Answered = Arc<Mutex<BTreeMap<String, (u64, u64, String)>>>;

fn facts(map: &Value) -> (u64, u64, String) {
    let number = |v: &Value| v.as_str().and_then(|t| t.parse().ok()).unwrap_or(0);
    let meta = &map["metadata"];
    (
        number(&meta["resourceVersion"]),
        number(&map["data"]["n"]),
        meta["uid"].as_str().unwrap_or("").to_owned(),
    )
}

async fn write_until_it_fails(http: Http, writer: u64, round: u64, answered: Answered) {
    for n in 1.. {
        let name = format!("w{writer}-{}", n % 10);
        let value = round * 1_000_000 + n;
        let patch = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": value.to_string()}});
        let path = format!("{MAPS}/{name}?fieldManager=w&force=true");
        let Ok(Ok(map)) = http
            .patch(&path, "apply", &patch)
            .await
            .map(|r| if r.code == 201 { r.expect(201) } else { r.expect(200) })
        else {
            return;
        };
        answered.lock().await.insert(name, facts(&map));
    }
}

// KS-A84
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_by_kill_9() -> Result<()> {
    let home = tempfile::tempdir()?;
    let answered = Answered::default();
    let mut highest = 0;
    for round in 1..=KILLS {
        let mut child = spawn(home.path()).await?;
        let kubeconfig = home.path().join("kubeconfig");
        let http = Http::with(&kubeconfig).await?;
        let list = http.get(MAPS).await?.expect(200)?;
        let rv = list["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0);
        ensure!(rv >= highest, "the revision went back from {highest} to {rv}");
        let found: BTreeMap<String, _> = list["items"]
            .as_array()
            .context("items")?
            .iter()
            .map(|m| (m["metadata"]["name"].as_str().unwrap_or("").to_owned(), facts(m)))
            .collect();
        for (name, (version, value, uid)) in answered.lock().await.iter() {
            let (v, n, u) = found.get(name).with_context(|| format!("round {round}: {name} is lost"))?;
            // A write whose answer was cut off may have happened as well.
            ensure!(
                u == uid && v >= version && n >= value,
                "round {round}: {name} is {v} {n}, was answered as {version} {value}"
            );
        }
        highest = found.values().map(|f| f.0).chain([rv]).max().unwrap_or(0);
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..4 {
            writers.spawn(write_until_it_fails(
                Http::with(&kubeconfig).await?,
                writer,
                round,
                answered.clone(),
            ));
        }
        let wanted = 40 * usize::try_from(round)?;
        let enough = async {
            // The kill comes at a different depth of the load in each round.
            while answered.lock().await.values().map(|f| usize::try_from(f.0).unwrap_or(0)).max().unwrap_or(0)
                < wanted
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, enough).await?;
        child.kill().await?;
        while writers.join_next().await.is_some() {}
        highest = answered.lock().await.values().map(|f| f.0).chain([highest]).max().unwrap_or(0);
    }
    Ok(())
}
