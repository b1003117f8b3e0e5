#!/usr/bin/env bash
# Builds the programs of a one-node Kubernetes 1.20 from Debian 12's source package into FOLDER/programs.
# The cache's key is the checksum of this file (build.sh). Usage: recipe.sh FOLDER, as root, with Go 1.19 installed.
set -euo pipefail
cd "$1"

# The sources of the mirror that this machine itself uses, with package lists apart from the machine's own.
mkdir -p sources lists/partial
key=/usr/share/keyrings/debian-archive-keyring.gpg
write_sources() {
    apt-get indextargets --format "deb-src [signed-by=$key] \$(SITE) \$(RELEASE) \$(COMPONENT)" \
        'Created-By: Packages' 'Origin: Debian' | sort --unique > sources/debian.list
    [ -s sources/debian.list ]
}
write_sources || { apt-get --quiet=2 update; write_sources; }    # the machine may have no list yet
apt=(apt-get --quiet=2 -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$PWD/sources"
    -o "Dir::State::Lists=$PWD/lists" -o APT::Sandbox::User=root)
"${apt[@]}" update
"${apt[@]}" source --download-only kubernetes

mkdir tree
tar --extract --gzip --file kubernetes_*.orig.tar.gz --directory tree --strip-components=1
cd tree

# Programs that Go 1.18 or later builds with the vendored version die as they go through a map.
rm -r vendor/github.com/modern-go/reflect2
cp -rL /usr/share/gocode/src/github.com/modern-go/reflect2 vendor/github.com/modern-go/reflect2
# A machine without CAP_SYS_RESOURCE cannot start a container with a negative oom_score_adj.
sed -i 's/= -99[789]$/= 0/' pkg/kubelet/qos/policy.go pkg/kubelet/dockershim/docker_sandbox.go
# A deleted pod stays in the API until its sandbox is collected.
sed -i 's/ContainerGCPeriod = time.Minute/ContainerGCPeriod = 2 * time.Second/' pkg/kubelet/kubelet.go
# The logs' folders, below the kubelet's working directory: each kubelet removes those of pods that it does not know.
sed -i 's#"/var/log/pods"#"pod-logs"#' pkg/kubelet/kuberuntime/kuberuntime_manager.go
sed -i 's#"/var/log/containers"#"container-logs"#' pkg/kubelet/kubelet.go pkg/kubelet/kuberuntime/legacy.go

programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet)
mkdir -p .go/src/k8s.io
ln -s "$PWD" .go/src/k8s.io/kubernetes
cd .go/src/k8s.io/kubernetes
export PATH="/usr/lib/go-1.19/bin:$PATH" GOPATH="$1/tree/.go" GOCACHE="$1/go-cache" GO111MODULE=off CGO_ENABLED=0
make gen_openapi    # the other generated sources are in the package
GOFLAGS=-tags=providerless hack/make-rules/build.sh "${programs[@]/#/cmd/}"    # without the drivers of the clouds
mkdir "$1/programs"
cp -L "${programs[@]/#/_output/local/go/bin/}" "$1/programs/"
gcc -Os -static -DVERSION=3.2 -o "$1/programs/pause" build/pause/linux/pause.c    # what holds a pod's sandbox open
