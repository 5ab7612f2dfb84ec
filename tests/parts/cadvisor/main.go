// Serves cAdvisor's own manager and collectors on /metrics. The cadvisor command is a module of its own that cannot be
// installed by its path, and wants more of the machine than the containers dashboard does.
package main

import (
	"flag"
	"log"
	"net/http"
	"time"

	"github.com/google/cadvisor/cache/memory"
	"github.com/google/cadvisor/container"
	_ "github.com/google/cadvisor/container/systemd/install"
	_ "github.com/google/cadvisor/fs/vfs/install"
	v2 "github.com/google/cadvisor/info/v2"
	"github.com/google/cadvisor/manager"
	"github.com/google/cadvisor/metrics"
	"github.com/google/cadvisor/utils/sysfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:18080", "address of /metrics")
	every := flag.Duration("housekeeping", time.Second, "time between two looks at a container")
	klog.InitFlags(nil)
	flag.Parse()

	// what needs hardware counters or walks every process is left out
	included := container.AllMetrics.Difference(container.MetricSet{
		container.NetworkAdvancedTcpUsageMetrics: {},
		container.NetworkTcpUsageMetrics:         {},
		container.NetworkUdpUsageMetrics:         {},
		container.PerfMetrics:                    {},
		container.ProcessMetrics:                 {},
		container.ReferencedMemoryMetrics:        {},
		container.ResctrlMetrics:                 {},
	})
	fixed := false
	housekeeping := manager.HousekeepingConfig{Interval: every, AllowDynamic: &fixed}
	cache := memory.New(2*time.Minute, nil)
	containers, err := manager.New(cache, sysfs.NewRealSysFs(), housekeeping, included, http.DefaultClient,
		[]string{""}, nil, "", 0)
	if err != nil {
		log.Fatal(err)
	}
	if err := containers.Start(); err != nil {
		log.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	all := v2.RequestOptions{IdType: v2.TypeName, Count: 1, Recursive: true}
	registry.MustRegister(
		metrics.NewPrometheusCollector(containers, nil, included, clock.RealClock{}, all),
		metrics.NewPrometheusMachineCollector(containers, included),
	)
	options := promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}
	http.Handle("/metrics", promhttp.HandlerFor(registry, options))
	log.Fatal(http.ListenAndServe(*listen, nil))
}
