//! The examples of `deploy/ingress`, as they are shipped, with real proxies before a real shim.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::client::{Client, request_token_path};
use crate::homeserver::{self, Homeserver, soon};
use crate::legacy::port;
use crate::shim::{Reserved, Shim, Wanted, authority};

const TARGET: &str = "/_matrix/client/r0/directory/room/%23a%2Fb%3Aexample.org?from=a%2Bb&x=;";

/// One process. Killed when dropped.
struct Ingress {
    child: Child,
    folder: TempDir,
}

impl Drop for Ingress {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Ingress {
    /// The example, with this test's ports, certificate and name in the place of the example's, each of which has to be there.
    async fn start(example: &str, changes: &[(&str, &str)], around: [&str; 2], command: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ingress").join(example);
        let mut text = std::fs::read_to_string(shipped).unwrap();
        for (old, new) in changes {
            assert!(text.contains(old), "{example} has no {old:?}");
            text = text.replace(old, new);
        }
        let [before, behind] = around.map(|part| part.replace("FOLDER", folder.path().to_str().unwrap()));
        std::fs::write(folder.path().join(example), format!("{before}{text}{behind}")).unwrap();
        let (program, arguments) = command.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&folder).env("HOME", folder.path()).stdin(Stdio::null());
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child =
            command.spawn().unwrap_or_else(|error| panic!("{program} is missing, tests/run installs it: {error}"));
        Self { child, folder }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

/// A client who lies about his address, sends a target that must not be decoded and a body larger than any buffer, and asks for a token.
async fn serves(ingress: &mut Ingress, port: u16, homeserver: &Homeserver) {
    serves_as(TARGET, ingress, port, homeserver).await;
}

/// The same for one that makes another target of it.
async fn serves_as(becomes: &str, ingress: &mut Ingress, port: u16, homeserver: &Homeserver) {
    let client =
        Client::of(format!("localhost:{port}")).over_http2(&authority().ca).with("X-Forwarded-For", "192.0.2.1");
    let up = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(ingress.child.try_wait().unwrap().is_none(), "{}", ingress.log());
            tokio::task::yield_now().await;
        }
    };
    soon("a proxy that listens", up).await;
    assert_eq!(client.get(TARGET).await.status, 200);
    let request = of(homeserver, "/directory/room/");
    assert_eq!(request.line(), format!("GET {becomes} HTTP/1.1"));
    assert_eq!(request.all("x-forwarded-for"), ["127.0.0.1"], "{}", request.head());

    let body = vec![b'x'; 20 << 20];
    assert_eq!(client.send("POST", "/_matrix/media/r0/upload?filename=a", &body).await.status, 200);
    assert!(of(homeserver, "/upload").content() == body);

    let asked = json!({"email": "a@example.org", "client_secret": "s3cr3t", "send_attempt": 1});
    client.post(&request_token_path("register"), asked).await;
    assert!(of(homeserver, "/requestToken").json()["id_server"].is_string(), "it did not come by the shim");
}

/// The only request with this in its line.
fn of(homeserver: &Homeserver, part: &str) -> homeserver::Raw {
    let mut all = homeserver.requests().into_iter().filter(|request| request.line().contains(part));
    let (first, second) = (all.next(), all.next());
    assert!(second.is_none(), "{part} came twice");
    first.unwrap_or_else(|| panic!("{part} did not come"))
}

async fn behind() -> (Homeserver, Shim) {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let wanted = Wanted { homeserver: "needs_shim = \"yes\"".into(), ..Wanted::default() };
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted).await;
    (homeserver, shim)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_for_nginx_serves() {
    let ((homeserver, shim), port) = (behind().await, port());
    let (leaf, key) = (authority().leaf.display().to_string(), authority().key.display().to_string());
    let listen = format!("listen 127.0.0.1:{port} ssl");
    let changes = [
        ("listen 443 ssl", &*listen),
        ("matrix.example.org;", "localhost;"),
        ("/etc/ssl/matrix.example.org/fullchain.pem", &*leaf),
        ("/etc/ssl/matrix.example.org/privkey.pem", &*key),
        ("127.0.0.1:8080", &*shim.clients),
    ];
    let around = [
        "daemon off; master_process off; error_log stderr; pid FOLDER/pid; events {} http { access_log off; client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy;\n",
        "}\n",
    ];
    let command = ["sh", "-c", "exec nginx -p . -c \"$PWD/nginx.conf\""];
    serves(&mut Ingress::start("nginx.conf", &changes, around, &command).await, port, &homeserver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_for_haproxy_serves() {
    let ((homeserver, shim), port) = (behind().await, port());
    let folder = tempfile::tempdir().unwrap();
    let both = folder.path().join("both.pem");
    let [leaf, key] = [&authority().leaf, &authority().key].map(|file| std::fs::read_to_string(file).unwrap());
    std::fs::write(&both, leaf + &key).unwrap();
    let bind = format!("bind 127.0.0.1:{port} ssl");
    let admin_port = format!("check port {}", shim.admin.rsplit(':').next().unwrap());
    let changes = [
        ("bind :443 ssl", &*bind),
        ("/etc/haproxy/matrix.example.org.pem", both.to_str().unwrap()),
        ("127.0.0.1:8080", &*shim.clients),
        ("check port 9091", &*admin_port),
    ];
    let command = ["haproxy", "-db", "-f", "haproxy.cfg"];
    serves(&mut Ingress::start("haproxy.cfg", &changes, ["", ""], &command).await, port, &homeserver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_for_caddy_serves() {
    let ((homeserver, shim), port) = (behind().await, port());
    let (leaf, key) = (authority().leaf.display(), authority().key.display());
    let site = format!("https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {leaf} {key}\n");
    let changes = [("matrix.example.org {\n", &*site), ("127.0.0.1:8080", &*shim.clients)];
    let around = ["{\n\tadmin off\n\tauto_https disable_redirects\n}\n", ""];
    let command = ["caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"];
    serves(&mut Ingress::start("Caddyfile", &changes, around, &command).await, port, &homeserver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_for_traefik_serves() {
    let ((homeserver, shim), port) = (behind().await, port());
    let admin_port = format!("port: {}\n", shim.admin.rsplit(':').next().unwrap());
    let shim_port = format!("url: http://{}\n", shim.clients);
    let changes = [
        ("matrix.example.org", "localhost"),
        ("url: http://127.0.0.1:8080\n", &*shim_port),
        ("port: 9091\n", &*admin_port),
    ];
    let (leaf, key) = (authority().leaf.display(), authority().key.display());
    let certificate = format!("tls: {{certificates: [{{certFile: {leaf}, keyFile: {key}}}]}}\n");
    // In its own folder it would take the file for what it calls static configuration.
    let script = format!(
        "folder=$PWD; cd /; exec {} --providers.file.filename=$folder/traefik.yaml \
         --entrypoints.https.address=127.0.0.1:{port} --entrypoints.https.transport.respondingTimeouts.readTimeout=5m \
         --global.checknewversion=false --global.sendanonymoususage=false",
        installed("traefik").display()
    );
    let command = ["sh", "-c", &script];
    let mut ingress = Ingress::start("traefik.yaml", &changes, ["", &certificate], &command).await;
    // It listens before it has read the file.
    soon("traefik has read its file", async {
        while !routes(port) {
            assert!(ingress.child.try_wait().unwrap().is_none(), "{}", ingress.log());
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A bare semicolon is taken for a separator; Matrix' clients encode it.
    serves_as(&TARGET.replace(';', "&"), &mut ingress, port, &homeserver).await;
}

/// Whether it takes requests, and knows whose they are.
fn routes(port: u16) -> bool {
    let url = format!("https://localhost:{port}/_matrix/client/r0/login");
    let mut curl = Command::new("curl");
    curl.args(["-sf", "-o", "/dev/null", "--max-time", "5", "--cacert"]).arg(&authority().ca).arg(url);
    curl.status().unwrap().success()
}

/// What `tests/run` keeps outside Debian's packages.
fn installed(tool: &str) -> PathBuf {
    let cache = std::env::var_os("THREEPID_SHIM_TEST_CACHE").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/threepid-shim-tests"));
    cache.join("tools/bin").join(tool)
}
