// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * workers: what runs later. A thread that waits for questions and answers them, and three
 * notes that are written now, after five jiffies and after ten: by work, delayed work and a
 * timer.
 */
#include "module.h"

struct work_struct {
	u64 data;
	struct list_head entry;
	void (*func)(struct work_struct *work);
};

struct timer_list {
	void *next, *previous;
	unsigned long expires;
	void (*function)(struct timer_list *timer);
	u32 flags;
};

struct delayed_work {
	struct work_struct work;
	struct timer_list timer;
	void *queue;
	int cpu;
};

struct wait_queue_head {
	u64 lock;
	struct list_head head;
};

struct wait_queue_entry {
	u32 flags;
	void *task;
	void *function;
	struct list_head entry;
};

struct completion {
	u32 done;
	struct wait_queue_head wait;
};

#define MAX_ERRNO 4095
#define TASK_NORMAL 3
#define WORK_INIT 0xfffffffe00000ull /* no pool, not pending */

extern volatile unsigned long jiffies;
extern void *system_wq;

void __init_waitqueue_head(struct wait_queue_head *head, const char *name, void *key);
void __init_swait_queue_head(struct wait_queue_head *head, const char *name, void *key);
void init_wait_entry(struct wait_queue_entry *entry, int flags);
long prepare_to_wait_event(struct wait_queue_head *head, struct wait_queue_entry *entry, int state);
void finish_wait(struct wait_queue_head *head, struct wait_queue_entry *entry);
int __wake_up(struct wait_queue_head *head, u32 mode, int count, void *key);
void complete(struct completion *completion);
void wait_for_completion(struct completion *completion);
void schedule(void);
void *kthread_create_on_node(int (*function)(void *), void *data, int node, const char *name, ...);
int wake_up_process(void *task);
bool kthread_should_stop(void);
int kthread_stop(void *task);
void init_timer_key(struct timer_list *timer, void *function, u32 flags, const char *name, void *key);
int mod_timer(struct timer_list *timer, unsigned long expires);
int timer_delete_sync(struct timer_list *timer);
void delayed_work_timer_fn(struct timer_list *timer);
bool queue_work_on(int cpu, void *queue, struct work_struct *work);
bool queue_delayed_work_on(int cpu, void *queue, struct delayed_work *work, unsigned long delay);
bool cancel_delayed_work_sync(struct delayed_work *work);

char workers_notes[32];
static u32 used;

static struct wait_queue_head questions;
static struct completion answered;
static void *answerer;
static u64 question, answer;

static struct work_struct now;
static struct delayed_work soon;
static struct timer_list later;

static void note(char letter)
{
	if (used < sizeof(workers_notes) - 1)
		workers_notes[used++] = letter;
}

static int answer_questions(void *square)
{
	struct wait_queue_entry wait;

	while (!kthread_should_stop()) {
		init_wait_entry(&wait, 0);
		while (prepare_to_wait_event(&questions, &wait, 1) == 0 && !question &&
		       !kthread_should_stop())
			schedule();
		finish_wait(&questions, &wait);
		if (question) {
			answer = question * *(u64 *)square;
			question = 0;
			complete(&answered);
		}
	}
	note('e');
	return (int)used;
}

static u64 factor = 3;

/* Have the thread multiply n, not 0, by three. */
u64 workers_ask(u64 n)
{
	question = n;
	__wake_up(&questions, TASK_NORMAL, 1, NULL);
	wait_for_completion(&answered);
	return answer;
}

static void note_now(struct work_struct *work)
{
	note(work == &now ? 'w' : '?');
}

static void note_soon(struct work_struct *work)
{
	note(work == &soon.work ? 'd' : '?');
}

static void note_later(struct timer_list *timer)
{
	note(timer == &later ? 't' : '?');
}

/* Plan the three notes; return how many of them were planned already. */
int workers_plan(void)
{
	int planned = mod_timer(&later, jiffies + 10);

	planned += !queue_delayed_work_on(0, system_wq, &soon, 5);
	planned += !queue_work_on(0, system_wq, &now);
	note('p');
	return planned;
}

/* Wait for what nobody will ever bring. */
u64 workers_hang(void)
{
	wait_for_completion(&answered);
	return answer;
}

static void init_work(struct work_struct *work, void (*function)(struct work_struct *))
{
	work->data = WORK_INIT;
	work->entry.next = work->entry.prev = &work->entry;
	work->func = function;
}

static int __init workers_init(void)
{
	__init_waitqueue_head(&questions, "&questions", NULL);
	__init_swait_queue_head(&answered.wait, "&answered", NULL);
	init_work(&now, note_now);
	init_work(&soon.work, note_soon);
	init_timer_key(&soon.timer, delayed_work_timer_fn, 0, NULL, NULL);
	init_timer_key(&later, note_later, 0, NULL, NULL);
	answerer = kthread_create_on_node(answer_questions, &factor, -1, "answerer/%d", 1);
	if ((unsigned long)answerer >= (unsigned long)-MAX_ERRNO)
		return -ENOMEM;
	wake_up_process(answerer);
	return 0;
}

static void __exit workers_exit(void)
{
	timer_delete_sync(&later);
	cancel_delayed_work_sync(&soon);
	pr_info("workers: the thread returned %d\n", kthread_stop(answerer));
}

module_init(workers_init);
module_exit(workers_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A thread, work and timers");
